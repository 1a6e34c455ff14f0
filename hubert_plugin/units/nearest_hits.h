/* The centroids that can be the nearest ones of a block of frames, found without a jump that depends on them: jumps that
 * cannot be foreseen took most of the time.
 *
 * Included once for each type of scores, with these macros:
 *
 * NAMED(x): a name for x, of this type.
 * SCORES: a vector of scores, of as many frames.
 * WORD: whole numbers of as many bits as a score has. Centroids are told bit by bit, in sets of these.
 */

#define BITS ((int64_t)(8 * sizeof(WORD)))
#define NUM_LANES ((int)(sizeof(SCORES) / sizeof(WORD)))
#define NUM_VECTORS (BLOCK / NUM_LANES)

typedef WORD NAMED(words) __attribute__((vector_size(sizeof(SCORES)), may_alias));

typedef struct {
    WORD *sets;          /* (ceil(K / BITS), BLOCK): which centroids */
    WORD where[BLOCK];   /* which sets are not empty: bit w % BITS for set w */
    WORD several[BLOCK]; /* whether there is more than one: 0 if not */
    WORD any[BLOCK];     /* if not: the only set that is not empty; 0 if there is none */
    WORD first[BLOCK];   /* and the first centroid that this set could hold */
} NAMED(hits);

/* Finds the scores of a block that are not above the limits of their frames.
 *
 * scores: (K, BLOCK).
 */
static void NAMED(find_hits)(const SCORES *scores, int64_t num_centroids, const SCORES *limit, NAMED(hits) * out) {
    typedef NAMED(words) words;

    words any[NUM_VECTORS] = {}, several[NUM_VECTORS] = {}, where[NUM_VECTORS] = {}, first[NUM_VECTORS] = {};

    for (int64_t from = 0; from < num_centroids; from += BITS) {
        const int64_t to = from + BITS < num_centroids ? from + BITS : num_centroids;
        const WORD this_set = (WORD)((WORD)1 << (from / BITS % BITS));

        /* Four vectors at a time, as sets and limits fit into registers then. */
        for (int v = 0; v < NUM_VECTORS; v += 4) {
            words set[4] = {}, bit = (words){} + 1;

            for (int64_t k = from; k < to; k++) {
                UNROLL for (int i = 0; i < 4; i++)
                    set[i] |= (words)(scores[k * NUM_VECTORS + v + i] <= limit[v + i]) & bit;

                bit += bit;
            }

            UNROLL for (int i = 0; i < 4; i++) {
                const words hit = (words)(set[i] != 0), hit_before = (words)(any[v + i] != 0);

                *(words *)(out->sets + from / BITS * BLOCK + (v + i) * NUM_LANES) = set[i];

                several[v + i] |= set[i] & ((set[i] - 1) | hit_before);
                where[v + i] |= hit & this_set;
                first[v + i] |= hit & (WORD)from;
                any[v + i] |= set[i];
            }
        }
    }

    memcpy(out->any, any, sizeof(any));
    memcpy(out->first, first, sizeof(first));
    memcpy(out->where, where, sizeof(where));
    memcpy(out->several, several, sizeof(several));
}

/* Returns the only centroid that can be nearest to the frame in the i-th lane; 0 if none is. */
INLINE int32_t NAMED(only_hit)(const NAMED(hits) * found, int32_t i) {
    return found->first[i] + (found->any[i] ? __builtin_ctz(found->any[i]) : 0);
}

/* Lists the centroids that can be nearest to the frame in the i-th lane of a block. */
static int32_t NAMED(list_hits)(const NAMED(hits) * found, int64_t num_centroids, int32_t i, int32_t *candidates) {
    int32_t count = 0;

    for (uint32_t where = found->where[i]; where; where &= where - 1) {
        for (int64_t w = __builtin_ctz(where); BITS * w < num_centroids; w += BITS) {
            for (uint32_t set = found->sets[w * BLOCK + i]; set; set &= set - 1)
                candidates[count++] = (int32_t)(BITS * w + __builtin_ctz(set));
        }
    }

    return count;
}

#undef BITS
#undef NUM_LANES
#undef NUM_VECTORS

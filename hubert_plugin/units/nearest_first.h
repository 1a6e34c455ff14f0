/* The nearest centroids of a block of frames by some of the features first, those in which the centroids differ most.
 *
 * Scores are h - u y . b. Of the quads that are not summed at first, the product is at most |y'| |b'| (Cauchy-Schwarz):
 * taken for it, sums of the first quads give bounds that no score is below. The centroid that is nearest in these quads
 * is scored in full, which excludes most of the others; what is left is scored one by one. What comes out is what scores
 * of all centroids give, to the last candidate; where too many are left, all are scored indeed.
 *
 * Several numbers of first quads (levels), fewer and fewer, are tried on a few blocks of frames, and what costs least is
 * kept for the next ones.
 */

/* What a centroid that is scored by itself costs, in centroids that are scored with all others. Measured: 4.8, and what
 * it takes to list them. */
#define COST_OF_ONE 6

/* Costs are estimates: what saves less than a tenth by them was seen to cost more. */
#define WORTHWHILE 0.9

/* Levels are tried once in so many blocks. */
#define BLOCKS_OF_A_TRIAL 64

typedef struct {
    int64_t num_left; /* blocks until the next trial */
    int64_t tried;    /* a level; their number if none is tried */
    int64_t chosen;   /* a level; their number if all quads at once cost least */
    double cost;      /* of what was chosen, for a frame, in centroids that are scored with all others */
} trial;

/* Returns the score of one centroid, the same that `score` gives. */
INLINE float score_one(const byte_centroids *c, const block *b, int64_t i, int64_t k) {
    const int32_t sum = c->offsets[k] + product_bytes(b->rows + i * b->row, c->rows + k * 4 * b->row, b->num_quads);

    return __builtin_fmaf(-b->unit[i], (float)sum, c->half_norms[k]);
}

/* Writes the nearest centroids of a block to `out`.
 *
 * cost: what that cost, as in `trial`; left alone if nothing came of it.
 * returns: how many scores of candidates were computed; -1 if too many were left, and all centroids are to be scored.
 */
static int64_t nearest_by_first(const byte_centroids *c, block *b, const first_quads *first, double *cost,
                                int64_t *out) {
    float rests[BLOCK] ALIGNED, near[BLOCK] ALIGNED, limit[BLOCK] ALIGNED;
    int32_t likely[BLOCK] ALIGNED = {};

    for (int v = 0; v < VECTORS; v++)
        store(rests + v * LANES, norms_of(b->quads + v * LANES, first->num_quads, b->num_quads));

    for (int i = 0; i < BLOCK; i++) {
        rests[i] *= b->unit[i];
        near[i] = INFINITY;
    }

    for (int64_t g = 0; g < c->num_groups; g++) score_first(b, c, g, first, rests, near, likely);

    /* One bound more than for scores: float32 may round these and what is held against them. */
    for (int i = 0; i < BLOCK; i++) limit[i] = score_one(c, b, i, likely[i]) + 3.0f * b->bound[i];

    hits_32 found;

    found.sets = b->sets;

    find_hits_32((const vec *)b->scores, c->num_centroids, (const vec *)limit, &found);

    const int64_t most = c->num_centroids * b->count / COST_OF_ONE;

    int64_t num_single = 0, num_again = 0;

    for (int32_t i = 0; i < b->count; i++) {
        out[i] = only_hit_32(&found, i);

        if (!found.several[i]) continue;

        const int32_t num_left = list_hits_32(&found, c->num_centroids, i, b->candidates);

        num_single += num_left;

        if (num_single > most) return -1;

        float best = INFINITY;

        for (int32_t j = 0; j < num_left; j++) {
            b->scores_again[j] = score_one(c, b, i, b->candidates[j]);
            best = b->scores_again[j] < best ? b->scores_again[j] : best;
        }

        const float highest = best + 2.0f * b->bound[i];

        int32_t num_candidates = 0;

        for (int32_t j = 0; j < num_left; j++) {
            b->candidates[num_candidates] = b->candidates[j]; /* never past j */
            num_candidates += b->scores_again[j] <= highest;
        }

        out[i] = b->candidates[0];

        if (num_candidates > 1) {
            out[i] = nearest_candidate(c, b, i, num_candidates);
            num_again += num_candidates;
        }
    }

    /* One of each frame was scored before the others. */
    *cost = (double)(c->num_centroids * first->num_quads) / b->num_quads +
            COST_OF_ONE * (1.0 + (double)num_single / b->count);

    return num_again;
}

/* Writes the nearest centroids of the next block to `out`, by what costs least.
 *
 * returns: how many scores of candidates were computed.
 */
static int64_t nearest_by_trial(const byte_centroids *c, block *b, trial *t, int64_t *out) {
    const int64_t num_levels = c->num_levels;

    if (t->num_left-- == 0) {
        t->num_left = BLOCKS_OF_A_TRIAL - 1;
        t->tried = 0;
        t->chosen = num_levels;
        t->cost = WORTHWHILE * (double)c->num_centroids;
    }

    const int is_trial = t->tried < num_levels;
    const int64_t level = is_trial ? t->tried : t->chosen;

    double cost = INFINITY;

    const int64_t num_again = level < num_levels ? nearest_by_first(c, b, c->levels + level, &cost, out) : -1;

    if (is_trial) {
        const int is_better = cost < t->cost;

        if (is_better) {
            t->chosen = level;
            t->cost = cost;
        }

        /* Once fewer quads cost more, even fewer cost more, too. */
        t->tried = is_better ? level + 1 : num_levels;
    }

    return num_again < 0 ? nearest_by_all(c, b, out) : num_again;
}

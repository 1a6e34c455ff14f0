/* The nearest centroids of frames of few features, by sums of 16 bits throughout: 16 frames at a time instead of 8. For
 * processors that cannot add products of bytes to sums of 32 bits by one instruction. Letters and bounds are those of
 * nearest_bytes.c.
 *
 * For scores of 16 bits, all frames and centroids share the size of their steps: x - m = s (y + e), c - m = t (b + f), in
 * whole numbers y and b, and a score is |c - m|^2 / (2 s t) - y . b. word_kernel.py chooses s and t for no score to be
 * out of range if |x - m| is at most a number of steps. Sums on the way there may be: they are right but for multiples
 * of 2^16. Frames beyond that number are scored exactly, and so are those with features that no byte holds.
 *
 * A vector of 16 frames has the first 8 in its even lanes, the others in its odd ones: two vectors of 32 bits are put
 * into one with the fewest instructions that way.
 */

/* So many features a frame may have. */
#define WORD_DIM 64

/* So many vectors of 16 frames make a block; so many meet WORD_GROUP centroids at a time. (6 by 2 is faster than 3 by 4.) */
#define WORD_VECTORS 4
#define WORD_PAIR 2
#define WORD_GROUP 6

typedef int16_t shorts __attribute__((vector_size(32), may_alias));

#define NAMED(name) name##_16
#define SCORES shorts
#define WORD uint16_t
#include "nearest_hits.h"
#undef NAMED
#undef SCORES
#undef WORD

/* The centroids, as word_kernel.py lays them out. */
typedef struct {
    int64_t num_centroids; /* K */
    int64_t num_groups;    /* G = ceil(K / WORD_GROUP) */
    const float *offsets;  /* (WORD_DIM): -m / s; zeros from D on */
    const int32_t *bytes;  /* (G, ceil(D / 2), WORD_GROUP): -b of two features, twice */
    const int32_t *starts; /* (G, WORD_GROUP): |c - m|^2 / (2 s t) and 128 times the sum of b, in 16 bits, twice */
    exact_centroids exact;
    float inverse;         /* 1 / s */
    float max_squares;     /* the square of the greatest |x - m| / s */
    float width_per_rest;  /* how far two scores of one frame may be off, for each |e|, */
    float width_per_norm;  /* for each |x - m| / s, */
    float width;           /* and in any case */
} word_centroids;

/* So many features a frame may have, for `nearest_words`. */
int word_dim(void) { return WORD_DIM; }

/* How many centroids meet a block of frames at a time. */
int word_group(void) { return WORD_GROUP; }

/* Room for what `nearest_words` keeps of a block: see there. */
int64_t num_word_room_bytes(int64_t dim, int64_t num_groups) {
    const int64_t num_centroids = num_groups * WORD_GROUP;

    return LINE + WORD_DIM * LANES + 2 * BLOCK * (WORD_DIM / 2 + num_centroids + (num_centroids + 15) / 16) +
           4 * BLOCK * dim + 8 * num_centroids;
}

/* Which frame of its block is in a lane. */
INLINE int32_t frame_of(int32_t lane) { return (lane & ~15) | (lane & 1) << 3 | (lane >> 1 & 7); }

/* Puts 8 frames of 32 bits into the even lanes, and 8 others into the odd ones: the lower halves of both, */
INLINE __m256i lower_halves(__m256i even, __m256i odd) {
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

/* or the upper ones. */
INLINE __m256i upper_halves(__m256i even, __m256i odd) {
    return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
}

/* Returns 8 features in whole steps; adds the squares of what they lack, and of all. Arrays of sums, however short, were
 * kept in memory by GCC (12), which took twice the time. */
INLINE __m256i whole_steps(vec features, vec offsets, vec inverse, vec *rests, vec *squares) {
    const vec steps = _mm256_fmadd_ps(features, inverse, offsets);
    const __m256i whole = _mm256_cvtps_epi32(steps);
    const vec rest = _mm256_sub_ps(steps, _mm256_cvtepi32_ps(whole));

    *rests = _mm256_fmadd_ps(rest, rest, *rests);
    *squares = _mm256_fmadd_ps(steps, steps, *squares);

    return whole;
}

/* Rounds a frame to bytes, 128 added. */
INLINE void round_frame(const float *x, int64_t dim, const word_centroids *c, uint8_t *bytes, vec *rests,
                        vec *squares) {
    const float *o = c->offsets;
    const vec inverse = _mm256_set1_ps(c->inverse);
    const __m256i zero = _mm256_set1_epi8(-128);

    vec r0 = _mm256_setzero_ps(), r1 = r0, s0 = r0, s1 = r0;

    int64_t d = 0;

    for (; d + 32 <= dim; d += 32) {
        const __m256i i = whole_steps(_mm256_loadu_ps(x + d), _mm256_loadu_ps(o + d), inverse, &r0, &s0);
        const __m256i j = whole_steps(_mm256_loadu_ps(x + d + 8), _mm256_loadu_ps(o + d + 8), inverse, &r1, &s1);
        const __m256i k = whole_steps(_mm256_loadu_ps(x + d + 16), _mm256_loadu_ps(o + d + 16), inverse, &r0, &s0);
        const __m256i l = whole_steps(_mm256_loadu_ps(x + d + 24), _mm256_loadu_ps(o + d + 24), inverse, &r1, &s1);

        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(i, j), _mm256_packs_epi32(k, l));

        /* Packing goes by halves of vectors. */
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

        _mm256_storeu_si256((__m256i *)(bytes + d),
                            _mm256_xor_si256(_mm256_permutevar8x32_epi32(packed, order), zero));
    }

    for (; d < dim; d += 8) {
        const vec features = d + 8 <= dim ? _mm256_loadu_ps(x + d) : load_first(x + d, dim - d);
        const __m256i i = whole_steps(features, _mm256_loadu_ps(o + d), inverse, &r1, &s1);
        const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));

        _mm_storel_epi64((__m128i *)(bytes + d),
                         _mm_xor_si128(_mm_packs_epi16(packed, packed), _mm256_castsi256_si128(zero)));
    }

    *rests = _mm256_add_ps(r0, r1);
    *squares = _mm256_add_ps(s0, s1);
}

/* Rounds 8 frames, and writes four features of all of them after another.
 *
 * bytes: room for (8, WORD_DIM).
 * quads: room for WORD_DIM / 4 vectors.
 * rest, squares: |e|^2 and |x - m|^2 / s^2.
 */
INLINE void round_eight(const float *x, int64_t dim, const word_centroids *c, uint8_t *bytes, __m256i *quads, vec *rest,
                        vec *squares) {
    const int64_t num_quads = (dim + 3) / 4;

    vec rests[8], sums[8];

    /* Not unrolled: 8 times this leave no registers. */
    _Pragma("GCC unroll 1") for (int i = 0; i < 8; i++)
        round_frame(x + i * dim, dim, c, bytes + i * WORD_DIM, rests + i, sums + i);

    *rest = sums_of(rests);
    *squares = sums_of(sums);

    int64_t q = 0;

    for (; q + 2 < num_quads; q += 8) {
        __m256i rows[8];

        UNROLL for (int i = 0; i < 8; i++) rows[i] = _mm256_loadu_si256((const __m256i *)(bytes + i * WORD_DIM + 4 * q));

        turn(rows);

        UNROLL for (int i = 0; i < 8; i++) quads[q + i] = rows[i];
    }

    /* Two quads are turned with less: 39 features make ten. */
    if (q < num_quads) {
        __m128i a[4];

        UNROLL for (int i = 0; i < 4; i++)
            a[i] = _mm_unpacklo_epi32(_mm_loadl_epi64((const __m128i *)(bytes + 2 * i * WORD_DIM + 4 * q)),
                                      _mm_loadl_epi64((const __m128i *)(bytes + (2 * i + 1) * WORD_DIM + 4 * q)));

        const __m256i even = _mm256_set_m128i(a[2], a[0]), odd = _mm256_set_m128i(a[3], a[1]);

        quads[q] = _mm256_unpacklo_epi64(even, odd);
        quads[q + 1] = _mm256_unpackhi_epi64(even, odd);
    }
}

/* Rounds a block of frames.
 *
 * pairs: two features of all frames after another, (ceil(D / 4), 2, WORD_VECTORS).
 * width: how far two scores of a frame may be off; INT16_MAX where scores tell nothing.
 * norms: |x|, or more.
 */
static void round_block(const float *x, int64_t dim, const word_centroids *c, uint8_t *bytes, __m256i *pairs,
                        __m256i *width, float *norms) {
    const int64_t num_quads = (dim + 3) / 4;

    /* What sums of so many squares, in float32, may lack. */
    const vec lacking = _mm256_set1_ps((1.0f + (float)(dim / 8 + 16) * 0x1p-24f) / c->inverse);

    for (int v = 0; v < WORD_VECTORS; v++) {
        __m256i quads[2][WORD_DIM / 4], widths[2];

        for (int h = 0; h < 2; h++) {
            const int64_t from = 16 * v + 8 * h;

            vec rest, squares;

            round_eight(x + from * dim, dim, c, bytes, quads[h], &rest, &squares);

            const vec norm = _mm256_sqrt_ps(squares);
            const vec usual = _mm256_fmadd_ps(
                _mm256_sqrt_ps(rest), _mm256_set1_ps(c->width_per_rest),
                _mm256_fmadd_ps(norm, _mm256_set1_ps(c->width_per_norm), _mm256_set1_ps(c->width)));
            const vec known = _mm256_cmp_ps(squares, _mm256_set1_ps(c->max_squares), _CMP_LE_OQ);

            widths[h] = _mm256_cvtps_epi32(
                _mm256_blendv_ps(_mm256_set1_ps(INT16_MAX), _mm256_min_ps(usual, _mm256_set1_ps(INT16_MAX)), known));

            store(norms + from, _mm256_fmadd_ps(norm, lacking, _mm256_set1_ps(c->exact.mean_norm)));
        }

        __m256i lowest = _mm256_set1_epi8(-1), highest = _mm256_setzero_si256();

        for (int64_t q = 0; q < num_quads; q++) {
            const __m256i first = lower_halves(quads[0][q], quads[1][q]), second = upper_halves(quads[0][q], quads[1][q]);

            pairs[2 * q * WORD_VECTORS + v] = first;
            pairs[(2 * q + 1) * WORD_VECTORS + v] = second;

            lowest = _mm256_min_epu8(lowest, _mm256_min_epu8(first, second));
            highest = _mm256_max_epu8(highest, _mm256_max_epu8(first, second));
        }

        /* The least and the greatest byte may stand for what is less or more. */
        const __m256i outside = _mm256_or_si256(_mm256_cmpeq_epi8(lowest, _mm256_setzero_si256()),
                                                _mm256_cmpeq_epi8(highest, _mm256_set1_epi8(-1)));
        const __m256i inside = _mm256_cmpeq_epi16(outside, _mm256_setzero_si256());

        width[v] = _mm256_or_si256(lower_halves(widths[0], widths[1]),
                                   _mm256_andnot_si256(inside, _mm256_set1_epi16(INT16_MAX)));
    }
}

/* Scores a block of frames with the `group`-th WORD_GROUP centroids; `best` holds the lowest so far. Meanwhile lines from
 * `ahead` on are fetched, so many for each WORD_PAIR vectors. */
INLINE void score_words(const __m256i *pairs, int64_t num_pairs, const word_centroids *centroids, int64_t group,
                        const char *ahead, int64_t num_lines, shorts *scores, __m256i *best) {
    const int32_t *c = centroids->bytes + group * num_pairs * WORD_GROUP;
    const int32_t *starts = centroids->starts + group * WORD_GROUP;

    for (int v = 0; v < WORD_VECTORS; v += WORD_PAIR) {
        __m256i sums[WORD_GROUP][WORD_PAIR];

        for (int64_t i = 0; i < num_lines; i++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);

        UNROLL for (int g = 0; g < WORD_GROUP; g++) {
            UNROLL for (int p = 0; p < WORD_PAIR; p++) sums[g][p] = _mm256_set1_epi32(starts[g]);
        }

        for (int64_t i = 0; i < num_pairs; i++) {
            __m256i features[WORD_PAIR];

            UNROLL for (int p = 0; p < WORD_PAIR; p++) features[p] = pairs[i * WORD_VECTORS + v + p];

            UNROLL for (int g = 0; g < WORD_GROUP; g++) {
                const __m256i centroid = _mm256_set1_epi32(c[i * WORD_GROUP + g]);

                UNROLL for (int p = 0; p < WORD_PAIR; p++)
                    sums[g][p] = _mm256_add_epi16(sums[g][p], _mm256_maddubs_epi16(features[p], centroid));
            }
        }

        UNROLL for (int g = 0; g < WORD_GROUP; g++) {
            UNROLL for (int p = 0; p < WORD_PAIR; p++) {
                scores[g * WORD_VECTORS + v + p] = (shorts)sums[g][p];

                best[v + p] = _mm256_min_epi16(best[v + p], sums[g][p]);
            }
        }
    }
}

/* Writes the first of the centroids that were found for each frame of a block. */
INLINE void write_units(const hits_16 *found, int64_t *out) {
    for (int v = 0; v < WORD_VECTORS; v++) {
        const __m256i any = _mm256_loadu_si256((const __m256i *)(found->any + 16 * v));
        const __m256i first = _mm256_loadu_si256((const __m256i *)(found->first + 16 * v));
        const __m256i lowest = _mm256_and_si256(any, _mm256_sub_epi16(_mm256_setzero_si256(), any));

        for (int h = 0; h < 2; h++) {
            const __m256i mask = _mm256_set1_epi32(0xffff);
            const __m256i bit = h ? _mm256_srli_epi32(lowest, 16) : _mm256_and_si256(lowest, mask);
            const __m256i from = h ? _mm256_srli_epi32(first, 16) : _mm256_and_si256(first, mask);

            /* The exponent of a power of two is which bit it is. */
            const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(bit)), 23);
            const __m256i unit = _mm256_add_epi32(from, _mm256_sub_epi32(exponent, _mm256_set1_epi32(127)));

            int64_t *to = out + 16 * v + 8 * h;

            _mm256_storeu_si256((__m256i *)to, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(unit)));
            _mm256_storeu_si256((__m256i *)(to + 4), _mm256_cvtepi32_epi64(_mm256_extracti128_si256(unit, 1)));
        }
    }
}

/* Writes the nearest centroids of M frames to `out`.
 *
 * frames: (M, D).
 * room: num_word_room_bytes(D, G), for this call alone.
 * returns: how many scores of candidates were computed.
 */
int64_t nearest_words(const float *frames, int64_t num_frames, int64_t dim, const word_centroids *c, uint8_t *room,
                      int64_t *out) {
    const int64_t num_pairs = (dim + 1) / 2, num_padded = c->num_groups * WORD_GROUP;

    __m256i *pairs = (__m256i *)(((uintptr_t)room + LINE - 1) / LINE * LINE); /* (WORD_DIM / 2, WORD_VECTORS) */
    shorts *scores = (shorts *)(pairs + WORD_DIM / 2 * WORD_VECTORS);         /* (K, WORD_VECTORS) */
    uint16_t *sets = (uint16_t *)(scores + num_padded * WORD_VECTORS);        /* (ceil(K / 16), BLOCK) */
    uint8_t *bytes = (uint8_t *)(sets + (num_padded + 15) / 16 * BLOCK);      /* (8, WORD_DIM) */
    float *last_frames = (float *)(bytes + 8 * WORD_DIM);                     /* (BLOCK, D) */
    int32_t *candidates = (int32_t *)(last_frames + BLOCK * dim);             /* (K) */
    float *scores_again = (float *)(candidates + num_padded);                 /* (K) */

    int64_t num_again = 0;

    for (int64_t start = 0; start < num_frames; start += BLOCK) {
        const int64_t count = num_frames - start < BLOCK ? num_frames - start : BLOCK;
        const float *x = frames + start * dim;

        /* Where frames are missing, the last one is repeated. */
        if (count < BLOCK) {
            for (int64_t i = 0; i < BLOCK; i++)
                memcpy(last_frames + i * dim, x + (i < count ? i : count - 1) * dim, dim * sizeof(float));

            x = last_frames;
        }

        __m256i width[WORD_VECTORS], best[WORD_VECTORS];
        float norms[BLOCK];

        round_block(x, dim, c, bytes, pairs, width, norms);

        for (int v = 0; v < WORD_VECTORS; v++) best[v] = _mm256_set1_epi16(INT16_MAX);

        /* The next block is fetched from memory while this one is worked on. */
        const int64_t size = BLOCK * dim * 4, num_steps = c->num_groups * (WORD_VECTORS / WORD_PAIR);
        const int64_t num_lines = start + 2 * BLOCK <= num_frames ? (size / LINE + num_steps - 1) / num_steps : 0;

        for (int64_t g = 0; g < c->num_groups; g++) {
            const int64_t line = g * num_lines * (WORD_VECTORS / WORD_PAIR);
            const int more = (line + num_lines * (WORD_VECTORS / WORD_PAIR)) * LINE <= size;

            score_words(pairs, num_pairs, c, g, (const char *)x + size + line * LINE, more ? num_lines : 0,
                        scores + g * WORD_GROUP * WORD_VECTORS, best);
        }

        shorts limit[WORD_VECTORS];

        for (int v = 0; v < WORD_VECTORS; v++) {
            const __m256i highest = _mm256_set1_epi16(INT16_MAX), unknown = _mm256_cmpeq_epi16(width[v], highest);

            limit[v] = (shorts)_mm256_blendv_epi8(_mm256_adds_epi16(best[v], width[v]), highest, unknown);
        }

        hits_16 found;

        found.sets = sets;

        find_hits_16(scores, c->num_centroids, limit, &found);

        int64_t units[BLOCK];

        write_units(&found, units);

        for (int v = 0; v < WORD_VECTORS; v++) {
            const __m256i several = _mm256_loadu_si256((const __m256i *)(found.several + 16 * v));
            const __m256i single = _mm256_cmpeq_epi16(several, _mm256_setzero_si256());

            /* Two bits for each lane. */
            uint32_t open = ~(uint32_t)_mm256_movemask_epi8(single) & 0x55555555;

            for (; open; open &= open - 1) {
                const int32_t lane = 16 * v + __builtin_ctz(open) / 2, i = frame_of(lane);

                if (i >= count) continue;

                const int32_t num_candidates = list_hits_16(&found, c->num_centroids, lane, candidates);

                units[i] = nearest_of(x + i * dim, norms[i], dim, &c->exact, candidates, num_candidates, scores_again);

                num_again += num_candidates;
            }
        }

        memcpy(out + start, units, count * sizeof(int64_t));
    }

    return num_again;
}

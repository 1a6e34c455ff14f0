/* The nearest centroid of each frame by products of bytes, and exactly.
 *
 * Bytes tell which centroids can be the nearest. With m, the mean of the centroids, x - m = y + e, where y is the frame
 * rounded to bytes and e the rest, and c - m = b + f likewise, (x - m) . (c - m) = y . b + e . b + (x - m) . f: a score
 * by bytes is off by no more than |e| |b| + |x - m| |f| (Cauchy-Schwarz). Candidates are all centroids within twice
 * that of the lowest score; their scores are computed again, in float32, and in float64 where that leaves it open.
 *
 * Frames are rounded row by row, then turned: lanes are frames, so that the search for the lowest score, too, works on
 * 8 or 16 frames at a time. What depends on the processor is in bytes_avx512.h and bytes_avx2.h.
 *
 * Letters: M frames, D features of a frame, Q = ceil(D / 4), K centroids. Compiled, loaded and called by kernel.py.
 */

#if defined(__GNUC__) && !defined(__clang__)
/* What GCC (12) moves out of the loops otherwise does not fit into the registers. */
#pragma GCC optimize("no-tree-pre", "no-gcse")
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* clang does it by itself, and better than when it is told. */
#if defined(__clang__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The bytes that come from memory at a time. */
#define LINE 64

/* The frames that are worked on together. */
#define BLOCK 64

/* The centroids, as kernel.py lays them out. */
typedef struct {
    int64_t num_centroids;   /* K */
    int64_t num_groups;      /* G = ceil(K / GROUP) */
    int64_t num_together;    /* so many quads of products fit into 16 bits, where these sum them */
    const float *mean;       /* (D): m, in float32 */
    const int8_t *bytes;     /* (G, Q, GROUP, 4): c - m in whole numbers of `step`; zeros from K and from D on */
    const int32_t *offsets;  /* (G, GROUP): -ZERO times the sum of the bytes of a centroid */
    const float *half_norms; /* (G, GROUP): |c - m|^2 / 2; infinite from K on */
    const float *centroids;  /* (K, D) */
    const float *full_norms; /* (K): |c|^2 / 2 */
    float step;
    float max_norm;       /* the greatest |c - m| */
    float max_bytes_norm; /* the greatest |b| */
    float max_rest;       /* the greatest |f| */
    float max_full_norm;  /* the greatest |c| */
    float mean_norm;      /* |m| */
} byte_centroids;

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "bytes_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "bytes_avx2.h"
#else
#error "a processor with AVX2 and FMA is needed"
#endif

/* A word of bits for each of so many frames. */
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));

/* The centroids that can be the nearest ones of a block of frames. */
typedef struct {
    uint32_t *sets;          /* (ceil(K / 32), BLOCK): which ones, bit by bit */
    uint32_t where[BLOCK];   /* which sets are not empty, bit by bit: bit w % 32 for set w */
    uint32_t several[BLOCK]; /* whether there is more than one: 0 if not */
    uint32_t unit[BLOCK];    /* if not: the only one; 0 if there is none */
} hits;

/* How many centroids meet a block of frames at a time. */
int group(void) { return GROUP; }

/* What frames of zeros are as bytes: the largest byte is one less than twice that. */
int zero(void) { return ZERO; }

/* How many quads of products are summed in 16 bits, at most; 0 if 32 bits are there for all. */
int together(void) { return TOGETHER; }

/* Room for what `nearest_bytes` keeps of a block: see there. */
int64_t num_room_bytes(int64_t dim, int64_t num_groups) {
    const int64_t row = (dim + 63) / 64 * 16, num_centroids = num_groups * GROUP;

    return LINE + 4 * ((4 + 4 * LANES + LANES + BLOCK) * row + BLOCK * (num_centroids + (num_centroids + 31) / 32) +
                       2 * num_centroids);
}

/* |c - m|^2 / 2 - (x - m) . (c - m): without the mean, as large offsets would leave less digits for the rest. */
static double score_f64(const float *x, const float *c, const float *mean, int64_t dim) {
    double sum = 0.0;

    for (int64_t d = 0; d < dim; d++) {
        const double centred = (double)c[d] - mean[d];

        sum += centred * (0.5 * centred - ((double)x[d] - mean[d]));
    }

    return sum;
}

/* Finds the scores of a block that are not above the limits of their frames. Nothing here depends on what is found: jumps
 * that cannot be foreseen took most of the time. */
static void find_hits(const float *scores, int64_t num_centroids, const vec *limit, hits *out) {
    words any[VECTORS] = {}, several[VECTORS] = {}, where[VECTORS] = {}, first[VECTORS] = {};

    for (int64_t from = 0; from < num_centroids; from += 32) {
        const int64_t to = from + 32 < num_centroids ? from + 32 : num_centroids;
        const uint32_t this_set = 1u << (from / 32 % 32);

        /* Four vectors at a time, as sets and limits fit into registers then. */
        for (int v = 0; v < VECTORS; v += 4) {
            words set[4] = {}, bit = (words){} + 1;

            for (int64_t k = from; k < to; k++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const vec value = *(const vec *)(scores + k * BLOCK + (v + i) * LANES);

                    set[i] |= (words)(value <= limit[v + i]) & bit;
                }

                bit += bit;
            }

            UNROLL for (int i = 0; i < 4; i++) {
                const words hit = (words)(set[i] != 0), hit_before = (words)(any[v + i] != 0);

                *(words *)(out->sets + from / 32 * BLOCK + (v + i) * LANES) = set[i];

                several[v + i] |= set[i] & ((set[i] - 1) | hit_before);
                where[v + i] |= hit & this_set;
                first[v + i] |= hit & (uint32_t)from;
                any[v + i] |= set[i];
            }
        }
    }

    for (int v = 0; v < VECTORS; v++) {
        memcpy(out->several + v * LANES, several + v, sizeof(words));
        memcpy(out->where + v * LANES, where + v, sizeof(words));

        for (int i = 0; i < LANES; i++)
            out->unit[v * LANES + i] = first[v][i] + (any[v][i] ? __builtin_ctz(any[v][i]) : 0);
    }
}

/* Lists the centroids that can be nearest to the i-th frame of a block. */
static int32_t list_candidates(const hits *found, int64_t num_centroids, int32_t i, int32_t *candidates) {
    int32_t count = 0;

    for (uint32_t where = found->where[i]; where; where &= where - 1) {
        for (int64_t w = __builtin_ctz(where); 32 * w < num_centroids; w += 32) {
            for (uint32_t set = found->sets[w * BLOCK + i]; set; set &= set - 1)
                candidates[count++] = (int32_t)(32 * w + __builtin_ctz(set));
        }
    }

    return count;
}

/* Returns which of `count` candidates is nearest to x, the first if there are several. */
static int32_t nearest_of(const float *x, float norm, int64_t dim, const byte_centroids *c, const int32_t *candidates,
                          int32_t count, float *scores) {
    float lowest = INFINITY, second = INFINITY;
    int32_t unit = candidates[0];

    for (int32_t i = 0; i < count; i++) {
        const int32_t k = candidates[i];
        const float value = c->full_norms[k] - product_f32(x, c->centroids + (int64_t)k * dim, dim);
        const float higher = value > lowest ? value : lowest;

        scores[i] = value;
        second = higher < second ? higher : second;
        unit = value < lowest ? k : unit;
        lowest = value < lowest ? value : lowest;
    }

    /* A lane sums an even half of its products and an odd one, then lanes are summed in five steps at most; all of it in
     * 24 bits. Twice for two scores, and twice as much for safety. */
    const float longest = c->max_full_norm;
    const float limit = lowest + 4.0f * 0x1p-24f * (dim / (2 * LANES) + 8) * longest * (norm + longest);

    if (second > limit) return unit;

    double least = INFINITY;

    for (int32_t i = 0; i < count; i++) {
        if (scores[i] <= limit) {
            const int32_t k = candidates[i];
            const double value = score_f64(x, c->centroids + (int64_t)k * dim, c->mean, dim);

            /* Beyond 1,024 centroids, candidates are not in their order. */
            if (value < least || (value == least && k < unit)) {
                least = value;
                unit = k;
            }
        }
    }

    return unit;
}

/* Writes the nearest centroids of M frames to `out`.
 *
 * frames: (M, D).
 * room: num_room_bytes(D, G), for this call alone.
 * returns: how many scores of candidates were computed.
 */
int64_t nearest_bytes(const float *frames, int64_t num_frames, int64_t dim, const byte_centroids *c, uint8_t *room,
                      int64_t *out) {
    const int64_t num_quads = (dim + 3) / 4, row = (dim + 63) / 64 * 16, num_padded = c->num_groups * GROUP;

    float *mean = (float *)(((uintptr_t)room + LINE - 1) / LINE * LINE);      /* (4 row) */
    float *centred = mean + 4 * row;                                          /* (16, 4 row) */
    int32_t *rows = (int32_t *)(centred + LANES * 4 * row);                   /* (16, row) */
    int32_t *quads = rows + LANES * row;                                      /* (row, BLOCK) */
    float *scores = (float *)(quads + row * BLOCK);                           /* (K, BLOCK) */
    uint32_t *sets = (uint32_t *)(scores + num_padded * BLOCK);               /* (ceil(K / 32), BLOCK) */
    int32_t *candidates = (int32_t *)(sets + (num_padded + 31) / 32 * BLOCK); /* (K) */
    float *scores_again = (float *)(candidates + num_padded);                 /* (K) */

    memset(mean, 0, 4 * row * sizeof(float));
    memcpy(mean, c->mean, dim * sizeof(float));

    int64_t num_again = 0;

    for (int64_t start = 0; start < num_frames; start += BLOCK) {
        const int64_t count = num_frames - start < BLOCK ? num_frames - start : BLOCK;

        float unit[BLOCK], norm[BLOCK];
        vec bound[VECTORS], best[VECTORS];

        for (int v = 0; v < VECTORS; v++) {
            const float *x[LANES];

            /* Where frames are missing, the last one is repeated. */
            for (int i = 0; i < LANES; i++) {
                const int64_t frame = v * LANES + i < count ? v * LANES + i : count - 1;

                x[i] = frames + (start + frame) * dim;
            }

            rounding r;

            round_frames(x, dim, mean, centred, rows, quads + v * LANES, &r);

            store(unit + v * LANES, r.step * c->step);
            store(norm + v * LANES, r.norm + c->mean_norm);

            /* Scores themselves are float32: 16 times what their sum can be off by. */
            const vec rounded = 0x1p-20f * c->max_norm * (c->max_norm + r.norm);

            bound[v] = r.rest * c->max_bytes_norm + (r.norm * c->max_rest + rounded);
            best[v] = INFINITY - (vec){};
        }

        /* The next block is fetched from memory while this one is worked on, Q lines with each group. */
        const int64_t size = BLOCK * dim * 4;
        const int has_next = start + 2 * BLOCK <= num_frames;

        for (int64_t g = 0; g < c->num_groups; g++) {
            const char *block = (const char *)(frames + start * dim);
            const char *ahead = has_next && g * num_quads * LINE < size ? block + size + g * num_quads * LINE : block;

            score(quads, num_quads, c, g, unit, ahead, scores + g * GROUP * BLOCK, best);
        }

        vec limit[VECTORS];

        for (int v = 0; v < VECTORS; v++) limit[v] = 2.0f * bound[v] + best[v];

        hits found;

        found.sets = sets;

        /* Not those beyond K: where squares are not finite, no score is above the limit. */
        find_hits(scores, c->num_centroids, limit, &found);

        int32_t open[BLOCK], num_open = 0;

        for (int32_t i = 0; i < count; i++) {
            out[start + i] = found.unit[i];

            open[num_open] = i;
            num_open += found.several[i] != 0;
        }

        for (int32_t j = 0; j < num_open; j++) {
            const int32_t i = open[j], num_candidates = list_candidates(&found, c->num_centroids, i, candidates);

            out[start + i] =
                nearest_of(frames + (start + i) * dim, norm[i], dim, c, candidates, num_candidates, scores_again);

            num_again += num_candidates;
        }
    }

    return num_again;
}

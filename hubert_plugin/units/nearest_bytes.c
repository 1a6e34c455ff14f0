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

/* How many centroids meet a block of frames at a time. */
int group(void) { return GROUP; }

/* What frames of zeros are as bytes: the largest byte is one less than twice that. */
int zero(void) { return ZERO; }

/* How many quads of products are summed in 16 bits, at most; 0 if 32 bits are there for all. */
int together(void) { return TOGETHER; }

/* Room for what `nearest_bytes` keeps of a block: see there. */
int64_t num_room_bytes(int64_t dim, int64_t num_groups) {
    const int64_t row = (dim + 63) / 64 * 16, num_centroids = num_groups * GROUP;

    return LINE + 4 * ((4 + 4 * LANES + LANES + BLOCK) * row + BLOCK * num_centroids * 2 + num_centroids);
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

/* Returns which of `count` candidates is nearest to x, the first if there are several. */
static int32_t nearest_of(const float *x, float norm, int64_t dim, const byte_centroids *c, const int32_t *candidates,
                          int32_t count, float *scores) {
    float lowest = INFINITY;

    for (int32_t i = 0; i < count; i++) {
        const int32_t k = candidates[i];

        scores[i] = c->full_norms[k] - product_f32(x, c->centroids + (int64_t)k * dim, dim);

        if (scores[i] < lowest) lowest = scores[i];
    }

    /* A lane sums an even half of its products and an odd one, then lanes are summed in five steps at most; all of it in
     * 24 bits. Twice for two scores, and twice as much for safety. */
    const float longest = c->max_full_norm;
    const float limit = lowest + 4.0f * 0x1p-24f * (dim / (2 * LANES) + 8) * longest * (norm + longest);

    double least = INFINITY;
    int32_t unit = candidates[0], num_close = 0;

    for (int32_t i = 0; i < count; i++) {
        if (scores[i] <= limit) {
            unit = candidates[i];
            num_close++;
        }
    }

    if (num_close == 1) return unit;

    for (int32_t i = 0; i < count; i++) {
        if (scores[i] <= limit) {
            const int32_t k = candidates[i];
            const double value = score_f64(x, c->centroids + (int64_t)k * dim, c->mean, dim);

            if (value < least) {
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

    float *mean = (float *)(((uintptr_t)room + LINE - 1) / LINE * LINE); /* (4 row) */
    float *centred = mean + 4 * row;                                     /* (16, 4 row) */
    int32_t *rows = (int32_t *)(centred + LANES * 4 * row);              /* (16, row) */
    int32_t *quads = rows + LANES * row;                                 /* (row, BLOCK) */
    float *scores = (float *)(quads + row * BLOCK);                      /* (K, BLOCK) */
    int32_t *candidates = (int32_t *)(scores + num_padded * BLOCK);      /* (BLOCK, K) */
    float *scores_again = (float *)(candidates + BLOCK * num_padded);    /* (K) */

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

        int32_t num_candidates[BLOCK] = {0};
        vec limit[VECTORS];

        for (int v = 0; v < VECTORS; v++) limit[v] = 2.0f * bound[v] + best[v];

        /* Not those beyond K: where squares are not finite, no score is above the limit. */
        for (int64_t k = 0; k < c->num_centroids; k++) {
            for (uint64_t hits = hits_of(scores + k * BLOCK, limit); hits; hits &= hits - 1) {
                const int i = __builtin_ctzll(hits);

                candidates[i * num_padded + num_candidates[i]++] = (int32_t)k;
            }
        }

        for (int64_t i = 0; i < count; i++) {
            const int32_t *these = candidates + i * num_padded;

            if (num_candidates[i] < 2) {
                out[start + i] = num_candidates[i] ? these[0] : 0;
            } else {
                out[start + i] =
                    nearest_of(frames + (start + i) * dim, norm[i], dim, c, these, num_candidates[i], scores_again);

                num_again += num_candidates[i];
            }
        }
    }

    return num_again;
}

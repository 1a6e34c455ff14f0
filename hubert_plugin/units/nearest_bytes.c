/* The nearest centroid of each frame by products of bytes, and exactly.
 *
 * Bytes tell which centroids can be the nearest. With m, the mean of the centroids, x - m = y + e, where y is the frame
 * rounded to bytes and e the rest, and c - m = b + f likewise, (x - m) . (c - m) = y . b + e . b + (x - m) . f: a score
 * by bytes is off by no more than |e| |b| + |x - m| |f| (Cauchy-Schwarz). Candidates are all centroids within twice
 * that of the lowest score; their scores are computed again, in float32, and in float64 where that leaves it open. The
 * bound is hardly ever met, as errors of many features cancel: with a part of it most candidates are left out, and few
 * labels are others (`fast`, in nearest.py).
 *
 * Frames are rounded row by row, then turned: lanes are frames, so that the search for the lowest score, too, works on
 * 8 or 16 frames at a time. What depends on the processor is in bytes_avx512.h, bytes_avx2.h and words_avx2.h; the
 * search for candidates is in nearest_hits.h, what is done with them in nearest_exact.h.
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

#include "nearest_exact.h"

/* The centroids, as kernel.py lays them out. */
typedef struct {
    int64_t num_centroids;   /* K */
    int64_t num_groups;      /* G = ceil(K / GROUP) */
    int64_t num_together;    /* so many quads of products fit into 16 bits, where these sum them */
    const int8_t *bytes;     /* (G, Q, GROUP, 4): c - m in whole numbers of `step`; zeros from K and from D on */
    const int32_t *offsets;  /* (G, GROUP): -ZERO times the sum of the bytes of a centroid */
    const float *half_norms; /* (G, GROUP): |c - m|^2 / 2; infinite from K on */
    exact_centroids exact;
    float step;
    float max_norm;       /* the greatest |c - m| */
    float max_bytes_norm; /* the greatest |b| */
    float max_rest;       /* the greatest |f| */
    float part;           /* which part of the bound is waited for: 1 if labels are to be exact */
} byte_centroids;

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "bytes_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "bytes_avx2.h"
#else
#error "a processor with AVX2 and FMA is needed"
#endif

#define NAMED(name) name##_32
#define SCORES vec
#define WORD uint32_t
#include "nearest_hits.h"
#undef NAMED
#undef SCORES
#undef WORD

#if defined(HAS_WORDS)
#include "words_avx2.h"
#else
int word_dim(void) { return 0; }
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

    return LINE + 4 * ((4 + 4 * LANES + LANES + BLOCK) * row + BLOCK * (num_centroids + (num_centroids + 31) / 32) +
                       2 * num_centroids);
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
    memcpy(mean, c->exact.mean, dim * sizeof(float));

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
            store(norm + v * LANES, r.norm + c->exact.mean_norm);

            /* Scores themselves are float32: 16 times what their sum can be off by. */
            const vec rounded = 0x1p-20f * c->max_norm * (c->max_norm + r.norm);

            bound[v] = c->part * (r.rest * c->max_bytes_norm + r.norm * c->max_rest) + rounded;
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

        hits_32 found;

        found.sets = sets;

        /* Not those beyond K: where squares are not finite, no score is above the limit. */
        find_hits_32((const vec *)scores, c->num_centroids, limit, &found);

        int32_t open[BLOCK], num_open = 0;

        for (int32_t i = 0; i < count; i++) {
            out[start + i] = found.first[i] + (found.any[i] ? __builtin_ctz(found.any[i]) : 0);

            open[num_open] = i;
            num_open += found.several[i] != 0;
        }

        for (int32_t j = 0; j < num_open; j++) {
            const int32_t i = open[j], num_candidates = list_hits_32(&found, c->num_centroids, i, candidates);

            out[start + i] =
                nearest_of(frames + (start + i) * dim, norm[i], dim, &c->exact, candidates, num_candidates, scores_again);

            num_again += num_candidates;
        }
    }

    return num_again;
}

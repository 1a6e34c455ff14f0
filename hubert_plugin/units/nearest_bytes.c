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
 * 8 or 16 frames at a time. What depends on the processor is in bytes_avx512.h, bytes_avx2.h, first_avx2.h and
 * words_avx2.h; the search for candidates is in nearest_hits.h, what is done with them in nearest_exact.h. With many
 * features, most centroids are excluded by some of these (nearest_first.h).
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

#define ALIGNED __attribute__((aligned(LINE)))

/* So many numbers of first quads can be tried. */
#define MAX_LEVELS 4

#include "nearest_exact.h"

/* Some of the quads, and the rest of each centroid without them. */
typedef struct {
    int64_t num_quads;
    const int32_t *offsets;  /* (G, GROUP): as for all quads */
    const float *rest_norms; /* (G, GROUP): |b'|, of the other quads, in steps */
    const float *half_rests; /* (G, GROUP): |b'|^2 / 2, as scores have it */
} first_quads;

/* The centroids, as byte_kernel.py lays them out. */
typedef struct {
    int64_t num_centroids;   /* K */
    int64_t num_groups;      /* G = ceil(K / GROUP) */
    int64_t num_together;    /* so many quads of products fit into 16 bits, where these sum them */
    const int8_t *bytes;     /* (G, Q, GROUP, 4): c - m in whole numbers of `step`; zeros from K and from D on */
    const int8_t *rows;      /* (K, row, 4): the same, quads in the order of features; zeros from Q on */
    const int32_t *places;   /* (row): where a quad of features is among those of `bytes` */
    const int32_t *offsets;  /* (G, GROUP): -ZERO times the sum of the bytes of a centroid */
    const float *half_norms; /* (G, GROUP): |c - m|^2 / 2; infinite from K on */
    exact_centroids exact;
    float step;
    float max_norm;       /* the greatest |c - m| */
    float max_bytes_norm; /* the greatest |b| */
    float max_rest;       /* the greatest |f| */
    float part;           /* which part of the bound is waited for: 1 if labels are to be exact */
    int64_t num_levels;
    first_quads levels[MAX_LEVELS];
} byte_centroids;

/* A block of frames, and what is kept of it. */
typedef struct {
    const float *frames; /* (count, D) */
    int64_t count;       /* up to BLOCK */
    int64_t dim;
    int64_t num_quads;
    int64_t row;       /* the quads that a row has room for */
    const char *ahead; /* the next block; null if there is none that is whole */

    int32_t *rows;  /* (BLOCK, row): the frames in bytes */
    int32_t *quads; /* (row, BLOCK): the same, turned, the quads in their places */
    float *scores;  /* (K, BLOCK) */
    uint32_t *sets; /* (ceil(K / 32), BLOCK) */

    int32_t *candidates; /* (K) */
    float *scores_again; /* (K) */

    float unit[BLOCK] ALIGNED;  /* what a product of bytes is worth */
    float norm[BLOCK] ALIGNED;  /* |x|, or more */
    float bound[BLOCK] ALIGNED; /* what scores are off by; with `part`, what is waited for */
} block;

/* Scores a block with the g-th GROUP centroids; `best` (BLOCK) holds the lowest so far. */
INLINE void score(const block *b, const byte_centroids *c, int64_t g, float *best);

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

/* Rounds a block of frames to bytes. */
static void round_to_bytes(const byte_centroids *c, const float *mean, float *centred, block *b) {
    for (int v = 0; v < VECTORS; v++) {
        const float *x[LANES];

        /* Where frames are missing, the last one is repeated. */
        for (int i = 0; i < LANES; i++) {
            const int64_t frame = v * LANES + i < b->count ? v * LANES + i : b->count - 1;

            x[i] = b->frames + frame * b->dim;
        }

        rounding r;

        int32_t *rows = b->rows + v * LANES * b->row, *quads = b->quads + v * LANES;

        /* Two functions, as it takes time to measure. */
        if (c->part < 1.0f)
            round_frames(x, b->dim, mean, c->places, 0, centred, rows, quads, &r);
        else
            round_frames(x, b->dim, mean, c->places, 1, centred, rows, quads, &r);

        /* Scores themselves are float32: 16 times what their sum can be off by. */
        const vec rounded = 0x1p-20f * c->max_norm * (c->max_norm + r.norm);

        store(b->unit + v * LANES, r.step * c->step);
        store(b->norm + v * LANES, r.norm + c->exact.mean_norm);
        store(b->bound + v * LANES, c->part * (r.rest * c->max_bytes_norm + r.norm * c->max_rest) + rounded);
    }
}

/* Returns which of the first `count` candidates is nearest to the i-th frame of a block. */
INLINE int64_t nearest_candidate(const byte_centroids *c, block *b, int64_t i, int32_t count) {
    return nearest_of(b->frames + i * b->dim, b->norm[i], b->dim, &c->exact, b->candidates, count, b->scores_again);
}

/* Writes the nearest centroids of a block to `out`.
 *
 * returns: how many scores of candidates were computed.
 */
static int64_t nearest_by_all(const byte_centroids *c, block *b, int64_t *out) {
    float limit[BLOCK] ALIGNED;

    for (int i = 0; i < BLOCK; i++) limit[i] = INFINITY;

    for (int64_t g = 0; g < c->num_groups; g++) score(b, c, g, limit);

    for (int i = 0; i < BLOCK; i++) limit[i] += 2.0f * b->bound[i];

    hits_32 found;

    found.sets = b->sets;

    /* Not those beyond K: where squares are not finite, no score is above the limit. */
    find_hits_32((const vec *)b->scores, c->num_centroids, (const vec *)limit, &found);

    int32_t open[BLOCK], num_open = 0;
    int64_t num_again = 0;

    for (int32_t i = 0; i < b->count; i++) {
        out[i] = only_hit_32(&found, i);

        open[num_open] = i;
        num_open += found.several[i] != 0;
    }

    for (int32_t j = 0; j < num_open; j++) {
        const int32_t num_candidates = list_hits_32(&found, c->num_centroids, open[j], b->candidates);

        out[open[j]] = nearest_candidate(c, b, open[j], num_candidates);

        num_again += num_candidates;
    }

    return num_again;
}

#if HAS_FIRST
#include "nearest_first.h"
#endif

/* How many centroids meet a block of frames at a time. */
int group(void) { return GROUP; }

/* What frames of zeros are as bytes: the largest byte is one less than twice that. */
int zero(void) { return ZERO; }

/* How many quads of products are summed in 16 bits, at most; 0 if 32 bits are there for all. */
int together(void) { return TOGETHER; }

/* Whether some of the features can be looked at first. */
int has_first(void) { return HAS_FIRST; }

/* How many quads the room of a row of D features holds. */
int64_t num_row_quads(int64_t dim) { return (dim + 63) / 64 * 16; }

/* Room for what `nearest_bytes` keeps of a block: see there. */
int64_t num_room_bytes(int64_t dim, int64_t num_groups) {
    const int64_t num_centroids = num_groups * GROUP;

    return LINE + 4 * ((4 + 4 * LANES + BLOCK + BLOCK) * num_row_quads(dim) +
                       BLOCK * (num_centroids + (num_centroids + 31) / 32) + 2 * num_centroids);
}

/* Writes the nearest centroids of M frames to `out`.
 *
 * frames: (M, D).
 * room: num_room_bytes(D, G), for this call alone.
 * returns: how many scores of candidates were computed.
 */
int64_t nearest_bytes(const float *frames, int64_t num_frames, int64_t dim, const byte_centroids *c, uint8_t *room,
                      int64_t *out) {
    const int64_t num_padded = c->num_groups * GROUP;

    block b = {.dim = dim, .num_quads = (dim + 3) / 4, .row = num_row_quads(dim)};

    float *mean = (float *)(((uintptr_t)room + LINE - 1) / LINE * LINE); /* (4 row) */
    float *centred = mean + 4 * b.row;                                   /* (LANES, 4 row) */

    b.rows = (int32_t *)(centred + LANES * 4 * b.row);
    b.quads = b.rows + BLOCK * b.row;
    b.scores = (float *)(b.quads + b.row * BLOCK);
    b.sets = (uint32_t *)(b.scores + num_padded * BLOCK);
    b.candidates = (int32_t *)(b.sets + (num_padded + 31) / 32 * BLOCK);
    b.scores_again = (float *)(b.candidates + num_padded);

    memset(mean, 0, 4 * b.row * sizeof(float));
    memcpy(mean, c->exact.mean, dim * sizeof(float));

#if HAS_FIRST
    trial trial = {};
#endif

    int64_t num_again = 0;

    for (int64_t start = 0; start < num_frames; start += BLOCK) {
        b.frames = frames + start * dim;
        b.count = num_frames - start < BLOCK ? num_frames - start : BLOCK;

        /* The next block is fetched from memory while this one is worked on. */
        b.ahead = start + 2 * BLOCK <= num_frames ? (const char *)(b.frames + BLOCK * dim) : NULL;

        round_to_bytes(c, mean, centred, &b);

#if HAS_FIRST
        num_again += nearest_by_trial(c, &b, &trial, out + start);
#else
        num_again += nearest_by_all(c, &b, out + start);
#endif
    }

    return num_again;
}

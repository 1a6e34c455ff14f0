/* The nearest centroid of each frame: `argmin_k h_k - x . c_k` with `h_k = |c_k|^2 / 2`.
 *
 * Products and search are one: a group of frames meets a panel of centroids, and their scores never leave the
 * registers. Libraries for matrix products write them to memory, from where the search reads them again; and with few
 * features, they reach a half of what the processor can do.
 *
 * Letters: M frames, D features of a frame, K centroids, V = ceil(K / LANES) vectors of centroids. Centroids come in
 * panels of at most PANEL vectors, see `nearest_f32`. Compiled, loaded and called by kernel.py.
 */

#if defined(__GNUC__) && !defined(__clang__)
/* What GCC (12) moves out of the loops otherwise does not fit into the registers. */
#pragma GCC optimize("no-tree-pre", "no-gcse")
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

/* So many sums fill the registers: GROUP * PANEL of them, PANEL centroids, and a feature. */
#if defined(__AVX512F__)
#define LANES 16
#define PANEL 4
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define PANEL 2
#else
#error "a processor with AVX2 and FMA is needed"
#endif

#define GROUP 6

/* Frames that meet one panel after the other, while they are in the cache. */
#define BLOCK (8 * GROUP)

/* The bytes that come from memory at a time. */
#define LINE 64

#define INLINE static inline __attribute__((always_inline))

/* clang does it by itself, and better than when it is told. */
#if defined(__clang__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* Runs CALL(width) with a width that the compiler knows. */
#if PANEL == 4
#define WITH_WIDTH(width, CALL)   \
    switch (width) {              \
        case 1: CALL(1); break;   \
        case 2: CALL(2); break;   \
        case 3: CALL(3); break;   \
        default: CALL(4); break;  \
    }
#else
#define WITH_WIDTH(width, CALL)   \
    switch (width) {              \
        case 1: CALL(1); break;   \
        default: CALL(2); break;  \
    }
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

int lanes(void) { return LANES; }

int panel(void) { return PANEL; }

INLINE vec splat(float value) { return value - (vec){}; }

INLINE ivec splat_int(int32_t value) { return value - (ivec){}; }

INLINE ivec either(ivec mask, ivec a, ivec b) { return (mask & a) | (~mask & b); }

/* Returns the `part`-th part, of `num_lines` lines, of the next block, which is fetched from memory while this one is
 * worked on; if there is no such part, what is there already. */
INLINE const char *next_part(const float *frames, int64_t num_frames, int64_t dim, int64_t start, int64_t part,
                             int64_t num_lines) {
    const char *block = (const char *)(frames + start * dim);

    const int64_t size = BLOCK * dim * 4, offset = part * num_lines * LINE;

    return offset < size && start + 2 * BLOCK <= num_frames ? block + size + offset : block;
}

/* Scores GROUP frames with `width` vectors of centroids, of which the first is the `first` of all. `best` and `where`
 * hold, for each frame and lane, the lowest score so far and the vector that it was found in. Meanwhile D lines from
 * `ahead` on are fetched. */
INLINE void score(const float *const *x, int64_t dim, const float *c, const float *h, int width, int32_t first,
                  const char *ahead, vec *best, ivec *where) {
    vec sums[GROUP][PANEL];

    UNROLL for (int p = 0; p < width; p++) {
        const vec norms = *(const vec *)(h + p * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) sums[g][p] = norms;
    }

    for (int64_t d = 0; d < dim; d++) {
        vec column[PANEL];

        __builtin_prefetch(ahead + d * LINE, 0, 2);

        UNROLL for (int p = 0; p < width; p++) column[p] = *(const vec *)(c + (d * width + p) * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) {
            const vec feature = splat(x[g][d]);

            UNROLL for (int p = 0; p < width; p++) sums[g][p] -= feature * column[p];
        }
    }

    UNROLL for (int g = 0; g < GROUP; g++) {
        UNROLL for (int p = 0; p < width; p++) {
            /* Of equal scores the first is kept. */
            const ivec less = sums[g][p] < best[g];

            best[g] = (vec)either(less, (ivec)sums[g][p], (ivec)best[g]);
            where[g] = either(less, splat_int(first + p), where[g]);
        }
    }
}

/* Writes the nearest centroids of M frames to `out`, by float32 sums.
 *
 * frames: (M, D).
 * c: V / PANEL panels of (D, PANEL, LANES) centroids, the last of which may have fewer vectors; where K is no multiple
 *    of LANES, centroids of zeros follow.
 * h: (V, LANES), infinite for those that follow.
 */
void nearest_f32(const float *frames, int64_t num_frames, int64_t dim, const float *c, const float *h,
                 int64_t num_vectors, int64_t *out) {
    for (int64_t start = 0; start < num_frames; start += BLOCK) {
        const int64_t count = num_frames - start < BLOCK ? num_frames - start : BLOCK;

        vec best[BLOCK];
        ivec where[BLOCK];

        for (int i = 0; i < BLOCK; i++) {
            best[i] = splat(INFINITY);
            where[i] = splat_int(0);
        }

        for (int64_t v = 0; v < num_vectors; v += PANEL) {
            const int width = num_vectors - v < PANEL ? (int)(num_vectors - v) : PANEL;

            for (int64_t i = 0; i < count; i += GROUP) {
                const float *x[GROUP];

                /* The last group repeats the last frame. */
                for (int g = 0; g < GROUP; g++) x[g] = frames + (start + (i + g < count ? i + g : count - 1)) * dim;

                const char *ahead = next_part(frames, num_frames, dim, start, (v / PANEL * BLOCK + i) / GROUP, dim);

#define SCORE(width) score(x, dim, c + v * LANES * dim, h + v * LANES, width, (int32_t)v, ahead, best + i, where + i)
                WITH_WIDTH(width, SCORE)
#undef SCORE
            }
        }

        for (int64_t i = 0; i < count; i++) {
            const vec values = best[i];
            const ivec vectors = where[i];

            float lowest = values[0];
            int32_t unit = INT32_MAX;

            for (int lane = 1; lane < LANES; lane++) lowest = values[lane] < lowest ? values[lane] : lowest;

            for (int lane = 0; lane < LANES; lane++) {
                const int32_t candidate = vectors[lane] * LANES + lane;

                unit = values[lane] == lowest && candidate < unit ? candidate : unit;
            }

            out[start + i] = unit < INT32_MAX ? unit : 0;
        }
    }
}

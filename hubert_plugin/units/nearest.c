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

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

#include <immintrin.h>

/* Room for the scores of a block, and for those centroids of a frame that may be the nearest. */
int64_t num_room_bytes(int64_t dim, int64_t num_vectors) {
    return BLOCK * ((dim + 63) / 64 * 64) + ((BLOCK + 2) * num_vectors + 1) * 4 * LANES;
}

INLINE __mmask16 first_lanes(int64_t count) { return count < 16 ? (__mmask16)((1u << count) - 1) : 0xffff; }

typedef struct {
    float step;  /* x - mean = step * bytes + rest */
    float norm;  /* |x - mean| */
    float rest;  /* |rest| */
} rounding;

/* Rounds x - mean to whole numbers of a step of its own, from -127 to 127, and writes them with 128 added: the
 * processor multiplies unsigned bytes with signed ones. */
INLINE rounding to_bytes(const float *x, const float *mean, int64_t dim, uint8_t *bytes) {
    __m512 top = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), rests = _mm512_setzero_ps();

    for (int64_t d = 0; d < dim; d += 16) {
        const __mmask16 m = first_lanes(dim - d);
        const __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + d), _mm512_maskz_loadu_ps(m, mean + d));

        top = _mm512_max_ps(top, _mm512_abs_ps(v));
        squares = _mm512_fmadd_ps(v, v, squares);
    }

    const float highest = _mm512_reduce_max_ps(top);
    const float step = (highest > 1e-30f ? highest : 1e-30f) / 127.0f;
    const __m512 inverse = _mm512_set1_ps(1.0f / step);

    for (int64_t d = 0; d < dim; d += 16) {
        const __mmask16 m = first_lanes(dim - d);
        const __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + d), _mm512_maskz_loadu_ps(m, mean + d));
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
        const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(step), v);

        rests = _mm512_fmadd_ps(rest, rest, rests);

        _mm_storeu_si128((__m128i *)(bytes + d),
                         _mm512_cvtusepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128))));
    }

    const rounding result = {step, sqrtf(_mm512_reduce_add_ps(squares)), sqrtf(_mm512_reduce_add_ps(rests))};

    return result;
}

/* Scores GROUP frames with `width` vectors of centroids by products of bytes; `best` holds the lowest so far.
 * Meanwhile num_quads lines from `ahead` on are fetched. */
INLINE void score_bytes(const uint8_t *x, int64_t stride, int64_t num_quads, const int8_t *c, const int32_t *offsets,
                        const float *h, int width, const float *unit, const char *ahead, float *scores, int64_t row,
                        vec *best) {
    __m512i sums[GROUP][PANEL];

    UNROLL for (int p = 0; p < width; p++) {
        const __m512i offset = _mm512_loadu_si512(offsets + p * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) sums[g][p] = offset;
    }

    for (int64_t q = 0; q < num_quads; q++) {
        __m512i columns[PANEL];

        __builtin_prefetch(ahead + q * LINE, 0, 2);

        UNROLL for (int p = 0; p < width; p++) columns[p] = _mm512_loadu_si512(c + (q * width + p) * 4 * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) {
            int32_t four;

            memcpy(&four, x + g * stride + 4 * q, 4);

            const __m512i features = _mm512_set1_epi32(four);

            UNROLL for (int p = 0; p < width; p++) sums[g][p] = _mm512_dpbusd_epi32(sums[g][p], features, columns[p]);
        }
    }

    UNROLL for (int p = 0; p < width; p++) {
        const __m512 norms = _mm512_loadu_ps(h + p * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) {
            const __m512 value = _mm512_fnmadd_ps(_mm512_set1_ps(unit[g]), _mm512_cvtepi32_ps(sums[g][p]), norms);

            _mm512_storeu_ps(scores + g * row + p * LANES, value);

            best[g] = (vec)_mm512_min_ps((__m512)best[g], value);
        }
    }
}

INLINE float product_f32(const float *x, const float *c, int64_t dim) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();

    int64_t d = 0;

    for (; d + 32 <= dim; d += 32) {
        even = _mm512_fmadd_ps(_mm512_loadu_ps(x + d), _mm512_loadu_ps(c + d), even);
        odd = _mm512_fmadd_ps(_mm512_loadu_ps(x + d + 16), _mm512_loadu_ps(c + d + 16), odd);
    }

    for (; d < dim; d += 16) {
        const __mmask16 m = first_lanes(dim - d);

        even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, x + d), _mm512_maskz_loadu_ps(m, c + d), even);
    }

    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

static double product_f64(const float *x, const float *c, int64_t dim) {
    double sum = 0.0;

    for (int64_t d = 0; d < dim; d++) sum += (double)x[d] * c[d];

    return sum;
}

/* What `nearest_bytes` knows of the centroids. With m = their mean: */
typedef struct {
    int64_t num_vectors;     /* V */
    const float *mean;       /* (D): m, in float32 */
    const int8_t *bytes;     /* panels of (ceil(D / 4), PANEL, LANES, 4): c - m in whole numbers of `step` */
    const int32_t *offsets;  /* (V, LANES): -128 times the sum of the bytes of a centroid */
    const float *half_norms; /* (V, LANES): |c - m|^2 / 2; infinite from K on */
    const float *centroids;  /* (K, D) */
    const double *exact;     /* (K): |c|^2 / 2 */
    float step;
    float max_norm;          /* the greatest |c - m| */
    float max_bytes_norm;    /* the greatest length of step * bytes */
    float max_rest;          /* the greatest |c - m - step * bytes| */
    float max_full_norm;     /* the greatest |c| */
} byte_centroids;

/* Returns which of `count` candidates is nearest to x, the one of the lowest number if there are several. */
static int32_t nearest_of(const float *x, float norm, int64_t dim, const byte_centroids *c, const int32_t *candidates,
                          int32_t count, float *scores) {
    float lowest = INFINITY;

    for (int32_t i = 0; i < count; i++) {
        const int32_t k = candidates[i];

        scores[i] = (float)c->exact[k] - product_f32(x, c->centroids + (int64_t)k * dim, dim);

        if (scores[i] < lowest) lowest = scores[i];
    }

    /* Each lane sums D / 32 products and the lanes are summed in five steps; all of it in 24 bits. Twice for two
     * scores, and twice as much for safety. */
    const float longest = c->max_full_norm;
    const float limit = lowest + 4.0f * 0x1p-24f * (dim / 32 + 8) * longest * (norm + longest);

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
            const double value = c->exact[k] - product_f64(x, c->centroids + (int64_t)k * dim, dim);

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
 * Bytes tell which centroids can be the nearest. With x - m = y + e, y being the rounded frame and e its rest, and
 * c - m = b + f likewise, (x - m) . (c - m) = y . b + e . b + (x - m) . f: the score by bytes is off by no more than
 * |e| |b| + |x - m| |f| (Cauchy-Schwarz). Candidates are all centroids within twice that of the lowest score.
 *
 * frames: (M, D).
 * room: num_room_bytes(D, V), for this call alone.
 * returns: how many scores of candidates were computed.
 */
int64_t nearest_bytes(const float *frames, int64_t num_frames, int64_t dim, const byte_centroids *c, uint8_t *room,
                      int64_t *out) {
    const int64_t num_quads = (dim + 3) / 4, stride = (dim + 63) / 64 * 64, row = c->num_vectors * LANES;

    uint8_t *bytes = room;
    float *scores = (float *)(bytes + BLOCK * stride), *scores_again = scores + BLOCK * row;
    int32_t *candidates = (int32_t *)(scores_again + row);

    float mean_square = 0.0f;

    for (int64_t d = 0; d < dim; d++) mean_square += c->mean[d] * c->mean[d];

    const float mean_norm = sqrtf(mean_square);

    int64_t num_again = 0;

    memset(bytes, 128, BLOCK * stride);

    for (int64_t start = 0; start < num_frames; start += BLOCK) {
        const int64_t count = num_frames - start < BLOCK ? num_frames - start : BLOCK;

        float unit[BLOCK] = {0}, bound[BLOCK], norm[BLOCK];
        vec best[BLOCK];

        for (int64_t i = 0; i < BLOCK; i++) best[i] = splat(INFINITY);

        for (int64_t i = 0; i < count; i++) {
            const rounding r = to_bytes(frames + (start + i) * dim, c->mean, dim, bytes + i * stride);

            unit[i] = r.step * c->step;
            norm[i] = r.norm + mean_norm;

            /* Scores themselves are float32: 16 times what their sum can be off by. */
            const float rounded = 0x1p-20f * c->max_norm * (c->max_norm + r.norm);

            bound[i] = 2.0f * (r.rest * c->max_bytes_norm + r.norm * c->max_rest + rounded);
        }

        for (int64_t v = 0; v < c->num_vectors; v += PANEL) {
            const int width = c->num_vectors - v < PANEL ? (int)(c->num_vectors - v) : PANEL;

            for (int64_t i = 0; i < count; i += GROUP) {
                const char *ahead =
                    next_part(frames, num_frames, dim, start, (v / PANEL * BLOCK + i) / GROUP, num_quads);

#define SCORE(width)                                                                                                 \
    score_bytes(bytes + i * stride, stride, num_quads, c->bytes + v * 4 * LANES * num_quads, c->offsets + v * LANES, \
                c->half_norms + v * LANES, width, unit + i, ahead, scores + i * row + v * LANES, row, best + i)
                WITH_WIDTH(width, SCORE)
#undef SCORE
            }
        }

        for (int64_t i = 0; i < count; i++) {
            const float *x_scores = scores + i * row;
            const float limit = _mm512_reduce_min_ps((__m512)best[i]) + bound[i];

            int32_t num_candidates = 0;

            /* Mostly one lane. */
            __mmask16 m = _mm512_cmp_ps_mask((__m512)best[i], _mm512_set1_ps(limit), _CMP_LE_OQ);

            for (; m; m &= m - 1) {
                for (int32_t k = __builtin_ctz(m); k < row; k += LANES) {
                    candidates[num_candidates] = k;

                    num_candidates += x_scores[k] <= limit;
                }
            }

            if (num_candidates < 2) {
                out[start + i] = num_candidates ? candidates[0] : 0;
            } else {
                out[start + i] =
                    nearest_of(frames + (start + i) * dim, norm[i], dim, c, candidates, num_candidates, scores_again);

                num_again += num_candidates;
            }
        }
    }

    return num_again;
}

#endif

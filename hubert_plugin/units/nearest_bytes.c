/* The nearest centroid of each frame by products of bytes, and exactly.
 *
 * Bytes tell which centroids can be the nearest. With m, the mean of the centroids, x - m = y + e, where y is the frame
 * rounded to bytes and e the rest, and c - m = b + f likewise, (x - m) . (c - m) = y . b + e . b + (x - m) . f: a score
 * by bytes is off by no more than |e| |b| + |x - m| |f| (Cauchy-Schwarz). Candidates are all centroids within twice
 * that of the lowest score; their scores are computed again, in float32, and in float64 where that leaves it open.
 *
 * Frames are rounded row by row, then turned: lanes are frames, so that the search for the lowest score, too, works on
 * 16 frames at a time.
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

#if !(defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__))

int has_bytes(void) { return 0; }

#else

#include <immintrin.h>

#define LANES 16

/* So many sums fill the registers: GROUP centroids meet VECTORS times 16 frames. */
#define GROUP 6
#define VECTORS 4

/* The frames that are worked on together. */
#define BLOCK (VECTORS * LANES)

/* The bytes that come from memory at a time. */
#define LINE 64

#define INLINE static inline __attribute__((always_inline))

/* clang does it by itself, and better than when it is told. */
#if defined(__clang__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The centroids, as kernel.py lays them out. */
typedef struct {
    int64_t num_centroids;   /* K */
    int64_t num_groups;      /* G = ceil(K / GROUP) */
    const float *mean;       /* (D): m, in float32 */
    const int8_t *bytes;     /* (G, Q, GROUP, 4): c - m in whole numbers of `step`; zeros from K and from D on */
    const int32_t *offsets;  /* (G, GROUP): -128 times the sum of the bytes of a centroid */
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

int has_bytes(void) { return 1; }

int group(void) { return GROUP; }

/* Room for what `nearest_bytes` keeps of a block: see there. */
int64_t num_room_bytes(int64_t dim, int64_t num_groups) {
    const int64_t num_quads = (dim + 63) / 64 * 16, num_centroids = num_groups * GROUP;

    return LINE + 4 * ((4 + 4 * LANES + LANES + BLOCK) * num_quads + BLOCK * num_centroids * 2 + num_centroids);
}

INLINE __mmask16 first_lanes(int64_t count) { return count < 16 ? (__mmask16)((1u << count) - 1) : 0xffff; }

/* Turns 16 rows of 16 numbers of 32 bits into columns. */
INLINE void turn(__m512i *rows) {
    __m512i a[16], b[16];

    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }

    UNROLL for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }

    /* Now b[4 i + j] holds, in its four quarters, columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3. */
    UNROLL for (int j = 0; j < 4; j++) {
        const __m512i even_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);

        rows[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        rows[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
        rows[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
}

/* Returns, for each of 16 rows, the sum of its 16 numbers, or the greatest: two rows are laid together and halved, four
 * times. The rows are spoiled. */
#define REDUCE(name, op)                                                                                               \
    INLINE __m512 name(__m512 *rows) {                                                                                 \
        UNROLL for (int i = 0; i < 8; i++)                                                                             \
            rows[i] = op(_mm512_shuffle_f32x4(rows[i], rows[i + 8], 0x44),                                             \
                         _mm512_shuffle_f32x4(rows[i], rows[i + 8], 0xee));                                            \
                                                                                                                       \
        UNROLL for (int i = 0; i < 4; i++)                                                                             \
            rows[i] = op(_mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x88),                                             \
                         _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xdd));                                            \
                                                                                                                       \
        UNROLL for (int i = 0; i < 2; i++)                                                                             \
            rows[i] = op(_mm512_shuffle_ps(rows[i], rows[i + 2], 0x44),                                                \
                         _mm512_shuffle_ps(rows[i], rows[i + 2], 0xee));                                               \
                                                                                                                       \
        const __m512 last =                                                                                            \
            op(_mm512_shuffle_ps(rows[0], rows[1], 0x88), _mm512_shuffle_ps(rows[0], rows[1], 0xdd));                  \
                                                                                                                       \
        return _mm512_permutexvar_ps(_mm512_set_epi32(15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0), last);    \
    }

REDUCE(sums_of, _mm512_add_ps)
REDUCE(maxima_of, _mm512_max_ps)

/* What came of rounding frames: x - m = step * bytes + e. */
typedef struct {
    __m512 step;
    __m512 norm; /* |x - m| */
    __m512 rest; /* |e| */
} rounding;

/* Rounds 16 frames to whole numbers from -127 to 127, with a step for each, and writes them with 128 added, as the
 * processor multiplies unsigned bytes with signed ones: four features of 16 frames after another, BLOCK frames apart.
 *
 * x: the frames, which may be one and the same.
 * mean: with zeros from D on, up to a multiple of 16.
 * centred, rows: room for (16, 4, Q) numbers and (16, Q) quads, Q being a multiple of 16.
 */
static void round_frames(const float *const *x, int64_t dim, const float *mean, float *centred, int32_t *rows,
                         int32_t *quads, rounding *out) {
    const int64_t row = (dim + 63) / 64 * 16, whole = dim / 16 * 16, last = (dim + 15) / 16 * 16;

    const __mmask16 tail = (__mmask16)((1u << (dim - whole)) - 1);

    __m512 top[LANES], squares[LANES];

    for (int i = 0; i < LANES; i++) {
        const float *frame = x[i];

        __m512 t = _mm512_setzero_ps(), s = _mm512_setzero_ps();

        for (int64_t d = 0; d < last; d += 16) {
            const __m512 values = d < whole ? _mm512_loadu_ps(frame + d) : _mm512_maskz_loadu_ps(tail, frame + d);
            const __m512 v = _mm512_sub_ps(values, _mm512_load_ps(mean + d));

            /* Kept, as frames begin anywhere, and loads across lines take twice the time. */
            _mm512_store_ps(centred + i * 4 * row + d, v);

            t = _mm512_range_ps(t, v, 0xb); /* the larger one, without signs */
            s = _mm512_fmadd_ps(v, v, s);
        }

        top[i] = t;
        squares[i] = s;
    }

    /* What sums of so many squares, in float32, may lack. */
    const __m512 lacking = _mm512_set1_ps(1.0f + (float)(dim / 16 + 16) * 0x1p-24f);

    const __m512 highest = _mm512_max_ps(maxima_of(top), _mm512_set1_ps(1e-30f));

    out->step = _mm512_mul_ps(highest, _mm512_set1_ps(1.0f / 127.0f));
    out->norm = _mm512_mul_ps(_mm512_sqrt_ps(sums_of(squares)), lacking);

    float inverses[LANES];

    _mm512_storeu_ps(inverses, _mm512_div_ps(_mm512_set1_ps(127.0f), highest));

    __m512 rests[LANES];

    for (int i = 0; i < LANES; i++) {
        const __m512 inverse = _mm512_set1_ps(inverses[i]);

        __m512 r = _mm512_setzero_ps();

        for (int64_t d = 0; d < last; d += 16) {
            const __m512 v = _mm512_load_ps(centred + i * 4 * row + d);
            const __m512 steps = _mm512_fmadd_ps(v, inverse, _mm512_set1_ps(128.0f));
            const __m512 rest = _mm512_reduce_ps(steps, 0); /* less the nearest whole number */

            r = _mm512_fmadd_ps(rest, rest, r);

            _mm_storeu_si128((__m128i *)(rows + i * row + d / 4), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(steps)));
        }

        rests[i] = r;
    }

    /* In steps so far; each is rounded in its 24th digit, which is 2^-17. */
    out->rest = _mm512_mul_ps(out->step, _mm512_fmadd_ps(_mm512_sqrt_ps(sums_of(rests)), lacking,
                                                         _mm512_set1_ps(0x1p-17f * sqrtf((float)dim))));

    for (int64_t q = 0; q < (dim + 3) / 4; q += 16) {
        __m512i tile[16];

        UNROLL for (int i = 0; i < 16; i++) tile[i] = _mm512_loadu_si512(rows + i * row + q);

        turn(tile);

        UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(quads + (q + i) * BLOCK, tile[i]);
    }
}

/* Scores BLOCK frames with GROUP centroids by products of bytes; `best` holds the lowest so far. Meanwhile Q lines from
 * `ahead` on are fetched. */
INLINE void score(const int32_t *quads, int64_t num_quads, const int8_t *c, const int32_t *offsets, const float *h,
                  const float *unit, const char *ahead, float *scores, __m512 *best) {
    __m512i sums[GROUP][VECTORS];

    UNROLL for (int g = 0; g < GROUP; g++) {
        UNROLL for (int v = 0; v < VECTORS; v++) sums[g][v] = _mm512_set1_epi32(offsets[g]);
    }

    for (int64_t q = 0; q < num_quads; q++) {
        __m512i features[VECTORS];

        __builtin_prefetch(ahead + q * LINE, 0, 2);

        UNROLL for (int v = 0; v < VECTORS; v++) features[v] = _mm512_loadu_si512(quads + q * BLOCK + v * LANES);

        UNROLL for (int g = 0; g < GROUP; g++) {
            int32_t four;

            memcpy(&four, c + (q * GROUP + g) * 4, 4);

            const __m512i centroid = _mm512_set1_epi32(four);

            UNROLL for (int v = 0; v < VECTORS; v++) {
                sums[g][v] = _mm512_dpbusd_epi32(sums[g][v], features[v], centroid);
            }
        }
    }

    UNROLL for (int g = 0; g < GROUP; g++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const __m512 value = _mm512_fnmadd_ps(_mm512_loadu_ps(unit + v * LANES), _mm512_cvtepi32_ps(sums[g][v]),
                                                  _mm512_set1_ps(h[g]));

            _mm512_storeu_ps(scores + g * BLOCK + v * LANES, value);

            best[v] = _mm512_min_ps(best[v], value);
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
        __m512 bound[VECTORS], best[VECTORS];

        for (int v = 0; v < VECTORS; v++) {
            const float *x[LANES];

            /* Where frames are missing, the last one is repeated. */
            for (int i = 0; i < LANES; i++) {
                const int64_t frame = v * LANES + i < count ? v * LANES + i : count - 1;

                x[i] = frames + (start + frame) * dim;
            }

            rounding r;

            round_frames(x, dim, mean, centred, rows, quads + v * LANES, &r);

            _mm512_storeu_ps(unit + v * LANES, _mm512_mul_ps(r.step, _mm512_set1_ps(c->step)));
            _mm512_storeu_ps(norm + v * LANES, _mm512_add_ps(r.norm, _mm512_set1_ps(c->mean_norm)));

            /* Scores themselves are float32: 16 times what their sum can be off by. */
            const __m512 max_norm = _mm512_set1_ps(c->max_norm);
            const __m512 rounded =
                _mm512_mul_ps(_mm512_set1_ps(0x1p-20f), _mm512_mul_ps(max_norm, _mm512_add_ps(max_norm, r.norm)));

            bound[v] = _mm512_fmadd_ps(r.rest, _mm512_set1_ps(c->max_bytes_norm),
                                       _mm512_fmadd_ps(r.norm, _mm512_set1_ps(c->max_rest), rounded));
            best[v] = _mm512_set1_ps(INFINITY);
        }

        /* The next block is fetched from memory while this one is worked on, Q lines with each group. */
        const int64_t size = BLOCK * dim * 4;
        const int has_next = start + 2 * BLOCK <= num_frames;

        for (int64_t g = 0; g < c->num_groups; g++) {
            const char *block = (const char *)(frames + start * dim);
            const char *ahead = has_next && g * num_quads * LINE < size ? block + size + g * num_quads * LINE : block;

            score(quads, num_quads, c->bytes + g * num_quads * GROUP * 4, c->offsets + g * GROUP,
                  c->half_norms + g * GROUP, unit, ahead, scores + g * GROUP * BLOCK, best);
        }

        int32_t num_candidates[BLOCK] = {0};
        __m512 limit[VECTORS];

        for (int v = 0; v < VECTORS; v++) limit[v] = _mm512_fmadd_ps(_mm512_set1_ps(2.0f), bound[v], best[v]);

        /* Not those beyond K: where squares are not finite, no score is above the limit. */
        for (int64_t k = 0; k < c->num_centroids; k++) {
            uint64_t hits = 0;

            UNROLL for (int v = 0; v < VECTORS; v++) {
                const __m512 value = _mm512_loadu_ps(scores + k * BLOCK + v * LANES);

                hits |= (uint64_t)_mm512_cmp_ps_mask(value, limit[v], _CMP_LE_OQ) << (v * LANES);
            }

            for (; hits; hits &= hits - 1) {
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

#endif

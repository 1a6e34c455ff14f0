/* What nearest_bytes.c needs of a processor with AVX2: vectors of 8 frames, products of bytes that are summed in 16 bits
 * for a while, then in 32. The letters and macros are those of that file.
 *
 * The products of two neighbours, y < 128 and |b| < 128, fit into 16 bits; so do, as most b are small, those of some
 * quads more: kernel.py tells how many. Widened only then, bytes take about a third of the time of float32.
 */

#include <immintrin.h>

#define LANES 8

/* So many sums fill the registers: GROUP centroids meet PAIR times 8 frames. (With 768 features, 6 by 2, 5 by 2, 4 by 2,
 * 2 by 4 and 1 by 8 took as long, or longer.) */
#define GROUP 3
#define PAIR 4

/* The vectors of a block. */
#define VECTORS 8

/* Frames are rounded to whole numbers from -MAX_STEPS to MAX_STEPS, and written with ZERO added, as the processor
 * multiplies unsigned bytes with signed ones. */
#define MAX_STEPS 63
#define ZERO 64

/* So many quads are summed in 16 bits, at most: more leave them fewer steps, and won nothing. */
#define TOGETHER 12

/* words_avx2.h, too, is for such processors. */
#define HAS_WORDS

typedef __m256 vec;

INLINE void store(float *to, vec value) { _mm256_storeu_ps(to, value); }

/* Loads the first numbers of 8, fewer than these; the others are 0. */
INLINE vec load_first(const float *from, int64_t count) {
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)count), numbers));
}

/* Turns 8 rows of 8 numbers of 32 bits into columns. */
INLINE void turn(__m256i *rows) {
    __m256i a[8], b[8];

    UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }

    UNROLL for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }

    /* Now b[4 i + j] holds, in its two halves, columns j and 4 + j of rows 4 i to 4 i + 3. */
    UNROLL for (int j = 0; j < 4; j++) {
        rows[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
        rows[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
    }
}

/* Returns, for each of 8 rows, the sum of its 8 numbers, or the greatest: two rows are laid together and halved, three
 * times. */
#define REDUCE(name, op)                                                                                               \
    INLINE vec name(const vec *rows) {                                                                                 \
        vec a[4], b[2];                                                                                                \
                                                                                                                       \
        UNROLL for (int i = 0; i < 4; i++)                                                                             \
            a[i] = op(_mm256_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0x88),                                           \
                      _mm256_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0xdd));                                          \
                                                                                                                       \
        UNROLL for (int i = 0; i < 2; i++)                                                                             \
            b[i] = op(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x88),                                                 \
                      _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xdd));                                                \
                                                                                                                       \
        return op(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31));                 \
    }

REDUCE(sums_of, _mm256_add_ps)
REDUCE(maxima_of, _mm256_max_ps)

/* What came of rounding frames: x - m = step * bytes + e. */
typedef struct {
    vec step;
    vec norm; /* |x - m| */
    vec rest; /* |e| */
} rounding;

/* Takes in 8 features: their mean is removed, what is left is kept, as frames begin anywhere, and loads across lines
 * take twice the time. */
INLINE void centre(vec features, const float *mean, float *centred, vec *top, vec *squares) {
    const vec v = _mm256_sub_ps(features, _mm256_load_ps(mean));

    _mm256_store_ps(centred, v);

    *top = _mm256_max_ps(*top, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v));
    *squares = _mm256_fmadd_ps(v, v, *squares);
}

/* Returns 8 features in whole steps; if measured, the squares of what they lack are added. */
INLINE __m256i round_to_steps(const float *centred, vec inverse, int is_measured, vec *rests) {
    const vec steps = _mm256_fmadd_ps(_mm256_load_ps(centred), inverse, _mm256_set1_ps(ZERO));
    const __m256i whole = _mm256_cvtps_epi32(steps);

    if (is_measured) {
        const vec rest = _mm256_sub_ps(steps, _mm256_cvtepi32_ps(whole));

        *rests = _mm256_fmadd_ps(rest, rest, *rests);
    }

    return whole;
}

/* Rounds 8 frames to bytes, with a step for each, and writes four features of 8 frames after another, BLOCK frames
 * apart.
 *
 * x: the frames, which may be one and the same.
 * mean: with zeros from D on, up to a multiple of 16.
 * places: see `byte_centroids`.
 * is_measured: whether |e| is; else it is what it has to be expected to be.
 * centred, rows: room for (8, 4, Q) numbers and (8, Q) quads, Q being a multiple of 16.
 */
INLINE void round_frames(const float *const *x, int64_t dim, const float *mean, const int32_t *places, int is_measured,
                         float *centred, int32_t *rows, int32_t *quads, rounding *out) {
    const int64_t row = (dim + 63) / 64 * 16, whole = dim / 8 * 8;

    vec top[LANES], squares[LANES];

    for (int i = 0; i < LANES; i++) {
        float *to = centred + i * 4 * row;

        /* Two sums each, as a sum waits for the one before. */
        vec t[2] = {}, s[2] = {};

        int64_t d = 0;

        for (; d + 16 <= dim; d += 16) {
            UNROLL for (int j = 0; j < 2; j++)
                centre(_mm256_loadu_ps(x[i] + d + 8 * j), mean + d + 8 * j, to + d + 8 * j, t + j, s + j);
        }

        if (d < whole) {
            centre(_mm256_loadu_ps(x[i] + d), mean + d, to + d, t, s);
            d += 8;
        }

        if (d < dim) centre(load_first(x[i] + d, dim - d), mean + d, to + d, t + 1, s + 1);

        top[i] = _mm256_max_ps(t[0], t[1]);
        squares[i] = _mm256_add_ps(s[0], s[1]);
    }

    /* What sums of so many squares, in float32, may lack. */
    const vec lacking = _mm256_set1_ps(1.0f + (float)(dim / 8 + 16) * 0x1p-24f);

    const vec highest = _mm256_max_ps(maxima_of(top), _mm256_set1_ps(1e-30f));

    out->step = _mm256_mul_ps(highest, _mm256_set1_ps(1.0f / MAX_STEPS));
    out->norm = _mm256_mul_ps(_mm256_sqrt_ps(sums_of(squares)), lacking);

    float inverses[LANES];

    _mm256_storeu_ps(inverses, _mm256_div_ps(_mm256_set1_ps(MAX_STEPS), highest));

    vec rests[LANES];

    for (int i = 0; i < LANES; i++) {
        const float *from = centred + i * 4 * row;
        const vec inverse = _mm256_set1_ps(inverses[i]);

        vec r[2] = {};

        int64_t d = 0;

        for (; d + 32 <= dim; d += 32) {
            __m256i four[4];

            UNROLL for (int j = 0; j < 4; j++) four[j] = round_to_steps(from + d + 8 * j, inverse, is_measured, r + j % 2);

            const __m256i bytes =
                _mm256_packus_epi16(_mm256_packs_epi32(four[0], four[1]), _mm256_packs_epi32(four[2], four[3]));

            /* Packing goes by halves of vectors. */
            const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

            _mm256_storeu_si256((__m256i *)(rows + i * row + d / 4), _mm256_permutevar8x32_epi32(bytes, order));
        }

        for (; d < dim; d += 8) {
            const __m256i one = round_to_steps(from + d, inverse, is_measured, r);
            const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));

            _mm_storel_epi64((__m128i *)(rows + i * row + d / 4), _mm_packus_epi16(words, words));
        }

        rests[i] = _mm256_add_ps(r[0], r[1]);
    }

    /* In steps so far; each is rounded in its 24th digit, which is 2^-17. Where a feature may be anywhere between two
     * steps, a twelfth is what is expected of its square. */
    const vec rest =
        is_measured ? _mm256_mul_ps(_mm256_sqrt_ps(sums_of(rests)), lacking) : _mm256_set1_ps(sqrtf((float)dim / 12));

    out->rest = _mm256_mul_ps(out->step, _mm256_add_ps(rest, _mm256_set1_ps(0x1p-17f * sqrtf((float)dim))));

    for (int64_t q = 0; q < (dim + 3) / 4; q += 8) {
        __m256i tile[8];

        UNROLL for (int i = 0; i < 8; i++) tile[i] = _mm256_loadu_si256((const __m256i *)(rows + i * row + q));

        turn(tile);

        UNROLL for (int i = 0; i < 8; i++) _mm256_storeu_si256((__m256i *)(quads + places[q + i] * BLOCK), tile[i]);
    }
}

/* Sums products of bytes of the g-th GROUP centroids with PAIR times 8 frames, in the first quads. */
INLINE void sum_group(const block *b, const byte_centroids *c, int64_t g, int v, int64_t num_quads,
                      const int32_t *offsets, __m256i (*sums)[PAIR]) {
    const int32_t *quads = b->quads + v * LANES;
    const int8_t *bytes = c->bytes + g * b->num_quads * GROUP * 4;

    UNROLL for (int i = 0; i < GROUP; i++) {
        UNROLL for (int p = 0; p < PAIR; p++) sums[i][p] = _mm256_set1_epi32(offsets[g * GROUP + i]);
    }

    /* A line of the next block is fetched with each quad: many at once wait for each other. Where there is none, what is
     * at hand. */
    const int64_t line = (v / PAIR * c->num_groups + g) * num_quads;
    const int is_ahead = b->ahead && line + num_quads <= 4 * b->dim;
    const char *ahead = is_ahead ? b->ahead + line * LINE : (const char *)quads;
    const int64_t size = is_ahead ? LINE : 0;

    for (int64_t from = 0; from < num_quads; from += c->num_together) {
        const int64_t to = from + c->num_together < num_quads ? from + c->num_together : num_quads;

        __m256i words[GROUP][PAIR];

        UNROLL for (int i = 0; i < GROUP; i++) {
            UNROLL for (int p = 0; p < PAIR; p++) words[i][p] = _mm256_setzero_si256();
        }

        for (int64_t q = from; q < to; q++) {
            __m256i features[PAIR];

            __builtin_prefetch(ahead + q * size, 0, 2);

            UNROLL for (int p = 0; p < PAIR; p++)
                features[p] = _mm256_loadu_si256((const __m256i *)(quads + q * BLOCK + p * LANES));

            UNROLL for (int i = 0; i < GROUP; i++) {
                int32_t four;

                memcpy(&four, bytes + (q * GROUP + i) * 4, 4);

                const __m256i centroid = _mm256_set1_epi32(four);

                UNROLL for (int p = 0; p < PAIR; p++)
                    words[i][p] = _mm256_add_epi16(words[i][p], _mm256_maddubs_epi16(features[p], centroid));
            }
        }

        UNROLL for (int i = 0; i < GROUP; i++) {
            UNROLL for (int p = 0; p < PAIR; p++)
                sums[i][p] = _mm256_add_epi32(sums[i][p], _mm256_madd_epi16(words[i][p], _mm256_set1_epi16(1)));
        }
    }
}

INLINE void score(const block *b, const byte_centroids *c, int64_t g, float *best) {
    const float *h = c->half_norms + g * GROUP;
    float *scores = b->scores + g * GROUP * BLOCK;

    for (int v = 0; v < VECTORS; v += PAIR) {
        __m256i sums[GROUP][PAIR];

        sum_group(b, c, g, v, b->num_quads, c->offsets, sums);

        UNROLL for (int p = 0; p < PAIR; p++) {
            const int at = (v + p) * LANES;
            const vec unit = _mm256_load_ps(b->unit + at);

            vec lowest = _mm256_load_ps(best + at);

            UNROLL for (int i = 0; i < GROUP; i++) {
                const vec value = _mm256_fnmadd_ps(unit, _mm256_cvtepi32_ps(sums[i][p]), _mm256_set1_ps(h[i]));

                _mm256_storeu_ps(scores + i * BLOCK + at, value);

                lowest = _mm256_min_ps(lowest, value);
            }

            _mm256_store_ps(best + at, lowest);
        }
    }
}

INLINE float product_f32(const float *x, const float *c, int64_t dim) {
    vec even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();

    int64_t d = 0;

    for (; d + 16 <= dim; d += 16) {
        even = _mm256_fmadd_ps(_mm256_loadu_ps(x + d), _mm256_loadu_ps(c + d), even);
        odd = _mm256_fmadd_ps(_mm256_loadu_ps(x + d + 8), _mm256_loadu_ps(c + d + 8), odd);
    }

    if (d + 8 <= dim) {
        odd = _mm256_fmadd_ps(_mm256_loadu_ps(x + d), _mm256_loadu_ps(c + d), odd);
        d += 8;
    }

    if (d < dim) even = _mm256_fmadd_ps(load_first(x + d, dim - d), load_first(c + d, dim - d), even);

    const vec both = _mm256_add_ps(even, odd);

    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#include "first_avx2.h"

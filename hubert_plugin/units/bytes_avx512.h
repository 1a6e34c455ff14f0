/* What nearest_bytes.c needs of a processor with AVX-512 and VNNI: vectors of 16 frames, products of bytes that are
 * summed in 32 bits. The letters and macros are those of that file. */

#include <immintrin.h>

#define LANES 16

/* So many sums fill the registers: GROUP centroids meet VECTORS times 16 frames. */
#define GROUP 6
#define VECTORS 4

/* Frames are rounded to whole numbers from -MAX_STEPS to MAX_STEPS, and written with ZERO added, as the processor
 * multiplies unsigned bytes with signed ones. */
#define MAX_STEPS 127
#define ZERO 128

#define TOGETHER 0

typedef __m512 vec;

INLINE void store(float *to, vec value) { _mm512_storeu_ps(to, value); }

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
    vec step;
    vec norm; /* |x - m| */
    vec rest; /* |e| */
} rounding;

/* Rounds 16 frames to bytes, with a step for each, and writes four features of 16 frames after another, BLOCK frames
 * apart.
 *
 * x: the frames, which may be one and the same.
 * mean: with zeros from D on, up to a multiple of 16.
 * places: see `byte_centroids`.
 * is_measured: whether |e| is; else it is what it has to be expected to be.
 * centred, rows: room for (16, 4, Q) numbers and (16, Q) quads, Q being a multiple of 16.
 */
INLINE void round_frames(const float *const *x, int64_t dim, const float *mean, const int32_t *places, int is_measured,
                         float *centred, int32_t *rows, int32_t *quads, rounding *out) {
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

    out->step = _mm512_mul_ps(highest, _mm512_set1_ps(1.0f / MAX_STEPS));
    out->norm = _mm512_mul_ps(_mm512_sqrt_ps(sums_of(squares)), lacking);

    float inverses[LANES];

    _mm512_storeu_ps(inverses, _mm512_div_ps(_mm512_set1_ps(MAX_STEPS), highest));

    __m512 rests[LANES];

    for (int i = 0; i < LANES; i++) {
        const __m512 inverse = _mm512_set1_ps(inverses[i]);

        __m512 r = _mm512_setzero_ps();

        for (int64_t d = 0; d < last; d += 16) {
            const __m512 v = _mm512_load_ps(centred + i * 4 * row + d);
            const __m512 steps = _mm512_fmadd_ps(v, inverse, _mm512_set1_ps(ZERO));

            if (is_measured) {
                const __m512 rest = _mm512_reduce_ps(steps, 0); /* less the nearest whole number */

                r = _mm512_fmadd_ps(rest, rest, r);
            }

            _mm_storeu_si128((__m128i *)(rows + i * row + d / 4), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(steps)));
        }

        rests[i] = r;
    }

    /* In steps so far; each is rounded in its 24th digit, which is 2^-17. Where a feature may be anywhere between two
     * steps, a twelfth is what is expected of its square. */
    const __m512 rest =
        is_measured ? _mm512_mul_ps(_mm512_sqrt_ps(sums_of(rests)), lacking) : _mm512_set1_ps(sqrtf((float)dim / 12));

    out->rest = _mm512_mul_ps(out->step, _mm512_add_ps(rest, _mm512_set1_ps(0x1p-17f * sqrtf((float)dim))));

    for (int64_t q = 0; q < (dim + 3) / 4; q += 16) {
        __m512i tile[16];

        UNROLL for (int i = 0; i < 16; i++) tile[i] = _mm512_loadu_si512(rows + i * row + q);

        turn(tile);

        UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(quads + places[q + i] * BLOCK, tile[i]);
    }
}

/* All quads are summed at once: nearest_first.h was not measured here. */
#define HAS_FIRST 0

INLINE void score(const block *b, const byte_centroids *c, int64_t g, float *best) {
    const int8_t *bytes = c->bytes + g * b->num_quads * GROUP * 4;
    const int32_t *offsets = c->offsets + g * GROUP;
    const float *h = c->half_norms + g * GROUP;
    float *scores = b->scores + g * GROUP * BLOCK;

    /* Q lines of the next block are fetched meanwhile; of this one, where there is none. */
    const int64_t line = g * b->num_quads;
    const char *ahead = b->ahead && line < 4 * b->dim ? b->ahead + line * LINE : (const char *)b->frames;

    __m512i sums[GROUP][VECTORS];

    UNROLL for (int i = 0; i < GROUP; i++) {
        UNROLL for (int v = 0; v < VECTORS; v++) sums[i][v] = _mm512_set1_epi32(offsets[i]);
    }

    for (int64_t q = 0; q < b->num_quads; q++) {
        __m512i features[VECTORS];

        __builtin_prefetch(ahead + q * LINE, 0, 2);

        UNROLL for (int v = 0; v < VECTORS; v++) features[v] = _mm512_loadu_si512(b->quads + q * BLOCK + v * LANES);

        UNROLL for (int i = 0; i < GROUP; i++) {
            int32_t four;

            memcpy(&four, bytes + (q * GROUP + i) * 4, 4);

            const __m512i centroid = _mm512_set1_epi32(four);

            UNROLL for (int v = 0; v < VECTORS; v++) {
                sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], features[v], centroid);
            }
        }
    }

    UNROLL for (int i = 0; i < GROUP; i++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const __m512 value = _mm512_fnmadd_ps(_mm512_load_ps(b->unit + v * LANES), _mm512_cvtepi32_ps(sums[i][v]),
                                                  _mm512_set1_ps(h[i]));

            _mm512_storeu_ps(scores + i * BLOCK + v * LANES, value);

            _mm512_store_ps(best + v * LANES, _mm512_min_ps(_mm512_load_ps(best + v * LANES), value));
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

/* What nearest_first.h needs of a processor with AVX2; see bytes_avx2.h. */

#define HAS_FIRST 1

/* Writes what scores with the g-th GROUP centroids are not below, from some quads. `near` holds the lowest partial
 * distance so far, `likely` its centroid.
 *
 * rests: what |b| over the other quads counts.
 */
INLINE void score_first(const block *b, const byte_centroids *c, int64_t g, const first_quads *first,
                        const float *rests, float *near, int32_t *likely) {
    const float *h = c->half_norms + g * GROUP;
    const float *norms = first->rest_norms + g * GROUP, *halves = first->half_rests + g * GROUP;
    float *scores = b->scores + g * GROUP * BLOCK;

    for (int v = 0; v < VECTORS; v += PAIR) {
        __m256i sums[GROUP][PAIR];

        sum_group(b, c, g, v, first->num_quads, first->offsets, sums);

        UNROLL for (int p = 0; p < PAIR; p++) {
            const int at = (v + p) * LANES;
            const vec unit = _mm256_load_ps(b->unit + at), rest = _mm256_load_ps(rests + at);

            vec nearest = _mm256_load_ps(near + at);
            __m256i nearest_at = _mm256_load_si256((const __m256i *)(likely + at));

            UNROLL for (int i = 0; i < GROUP; i++) {
                const vec part = _mm256_fnmadd_ps(unit, _mm256_cvtepi32_ps(sums[i][p]), _mm256_set1_ps(h[i]));
                const vec distance = _mm256_sub_ps(part, _mm256_set1_ps(halves[i]));
                const __m256i nearer = _mm256_castps_si256(_mm256_cmp_ps(distance, nearest, _CMP_LT_OQ));

                _mm256_storeu_ps(scores + i * BLOCK + at, _mm256_fnmadd_ps(rest, _mm256_set1_ps(norms[i]), part));

                nearest = _mm256_min_ps(nearest, distance);
                nearest_at = _mm256_blendv_epi8(nearest_at, _mm256_set1_epi32((int32_t)(g * GROUP + i)), nearer);
            }

            _mm256_store_ps(near + at, nearest);
            _mm256_store_si256((__m256i *)(likely + at), nearest_at);
        }
    }
}

/* Returns the lengths of 8 frames in some of their quads, in steps. */
INLINE vec norms_of(const int32_t *quads, int64_t from, int64_t to) {
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_set1_epi8(ZERO);

    __m256i sum = _mm256_setzero_si256();

    for (int64_t q = from; q < to; q++) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(quads + q * BLOCK));
        const __m256i steps = _mm256_abs_epi8(_mm256_sub_epi8(bytes, zero));

        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(steps, steps), ones));
    }

    return _mm256_sqrt_ps(_mm256_cvtepi32_ps(sum));
}

/* Returns the sum of products of two rows of bytes. */
INLINE int32_t product_bytes(const int32_t *x, const int8_t *c, int64_t num_quads) {
    const __m256i ones = _mm256_set1_epi16(1);

    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

    /* Rows have room for 16 quads more, and those of centroids end with zeros. */
    for (int64_t q = 0; q < num_quads; q += 16) {
        UNROLL for (int i = 0; i < 2; i++) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(x + q + 8 * i));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(c + 4 * (q + 8 * i)));

            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }

    const __m256i both = _mm256_add_epi32(sums[0], sums[1]);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));

    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

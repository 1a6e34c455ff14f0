/* The nearest of a few centroids, exactly: what products of bytes leave open. Letters as in nearest_bytes.c. */

/* Returns x . c. */
INLINE float product_f32(const float *x, const float *c, int64_t dim);

/* The centroids as they are. */
typedef struct {
    const float *centroids;  /* (K, D) */
    const float *full_norms; /* (K): |c|^2 / 2 */
    const float *mean;       /* (D): m, in float32 */
    float max_full_norm;     /* the greatest |c| */
    float mean_norm;         /* |m| */
} exact_centroids;

/* |c - m|^2 / 2 - (x - m) . (c - m): without the mean, as large offsets would leave less digits for the rest. */
static double score_f64(const float *x, const float *c, const float *mean, int64_t dim) {
    double sum = 0.0;

    for (int64_t d = 0; d < dim; d++) {
        const double centred = (double)c[d] - mean[d];

        sum += centred * (0.5 * centred - ((double)x[d] - mean[d]));
    }

    return sum;
}

/* Returns which of `count` candidates is nearest to x, the first if there are several.
 *
 * norm: |x|, or more.
 * scores: room for as many scores.
 */
static int32_t nearest_of(const float *x, float norm, int64_t dim, const exact_centroids *c, const int32_t *candidates,
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

    /* One of 8 lanes, or of 16, sums an even half of its products and an odd one, then lanes are summed in five steps at
     * most; all of it in 24 bits. Twice for two scores, and twice as much for safety. */
    const float longest = c->max_full_norm;
    const float limit = lowest + 4.0f * 0x1p-24f * (dim / 16 + 8) * longest * (norm + longest);

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

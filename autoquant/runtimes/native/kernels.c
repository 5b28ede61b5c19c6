/* The two memory-bound passes around an int8 matrix product, fused: rows to int8 codes, and int32 sums to outputs.
 *
 * Plain C that a compiler vectorises, compiled on first use for the machine it runs on (see native/__init__.py). The pure
 * torch path in torch_runtime.py computes the same; these take one pass over memory where it takes five.
 * A bfloat16 is the upper half of a float32; rounding is to nearest, ties to even. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float bf16_to_f32(uint16_t v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; }
static inline uint16_t f32_to_bf16(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float identity(float v) { return v; }

/* codes[r, c] = clamp(round(x[r, c] / scale), -128, 127); sums[r] = sum of codes[r, :] when sums is given.
 * per_row: scales[r] = absmax of the row / 127.5 is computed here; otherwise scales[0] is used for all rows.
 * An all-zero row has scale 1. */
#define QUANTIZE(NAME, T, LOAD)                                                                                        \
    void NAME(const T *x, int8_t *codes, float *scales, int32_t *sums, int64_t rows, int64_t cols, int per_row,        \
              int threads) {                                                                                           \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                           \
            const T *in = x + r * cols;                                                                                \
            int8_t *out = codes + r * cols;                                                                            \
            float scale = scales[0];                                                                                   \
            if (per_row) {                                                                                             \
                float top = 0.0f;                                                                                      \
                for (int64_t c = 0; c < cols; c++) { float v = fabsf(LOAD(in[c])); top = v > top ? v : top; }          \
                scale = top > 0.0f ? top / 127.5f : 1.0f;                                                              \
                scales[r] = scale;                                                                                     \
            }                                                                                                          \
            int32_t sum = 0;                                                                                           \
            for (int64_t c = 0; c < cols; c++) {                                                                       \
                float v = rintf(LOAD(in[c]) / scale);                                                                  \
                v = v > 127.0f ? 127.0f : (v < -128.0f ? -128.0f : v);                                                 \
                int32_t q = (int32_t)v;                                                                                \
                out[c] = (int8_t)q;                                                                                    \
                sum += q;                                                                                              \
            }                                                                                                          \
            if (sums) sums[r] = sum;                                                                                   \
        }                                                                                                              \
    }
QUANTIZE(quantize_f32, float, identity)
QUANTIZE(quantize_bf16, uint16_t, bf16_to_f32)

#define ABSMAX(NAME, T, LOAD)                                                                                          \
    float NAME(const T *x, int64_t n, int threads) {                                                                   \
        float top = 0.0f;                                                                                              \
        _Pragma("omp parallel for simd schedule(static) num_threads(threads) reduction(max : top) if (threads > 1)")   \
        for (int64_t i = 0; i < n; i++) { float v = fabsf(LOAD(x[i])); top = v > top ? v : top; }                      \
        return top;                                                                                                    \
    }
ABSMAX(absmax_f32, float, identity)
ABSMAX(absmax_bf16, uint16_t, bf16_to_f32)

/* y[r, c] = (acc[r, c] - zero_points[c] * sums[r]) * row_scale * col_scales[c] + bias[c], all in float32, then stored.
 * row_stride is 0 when one scale serves all rows; zero_points, sums and bias may be null. */
#define FINISH(NAME, T, STORE)                                                                                         \
    void NAME(const int32_t *acc, const float *row_scales, int row_stride, const float *col_scales,                    \
              const float *zero_points, const int32_t *sums, const float *bias, T *y, int64_t rows, int64_t cols,      \
              int threads) {                                                                                           \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                           \
            const int32_t *in = acc + r * cols;                                                                        \
            T *out = y + r * cols;                                                                                     \
            const float s = row_scales[row_stride ? r : 0];                                                            \
            const float total = sums ? (float)sums[r] : 0.0f;                                                          \
            if (zero_points && bias)                                                                                   \
                for (int64_t c = 0; c < cols; c++)                                                                     \
                    out[c] = STORE(((float)in[c] - zero_points[c] * total) * (s * col_scales[c]) + bias[c]);           \
            else if (zero_points)                                                                                      \
                for (int64_t c = 0; c < cols; c++)                                                                     \
                    out[c] = STORE(((float)in[c] - zero_points[c] * total) * (s * col_scales[c]));                     \
            else if (bias)                                                                                             \
                for (int64_t c = 0; c < cols; c++) out[c] = STORE((float)in[c] * (s * col_scales[c]) + bias[c]);       \
            else                                                                                                       \
                for (int64_t c = 0; c < cols; c++) out[c] = STORE((float)in[c] * (s * col_scales[c]));                 \
        }                                                                                                              \
    }
FINISH(finish_f32, float, identity)
FINISH(finish_bf16, uint16_t, f32_to_bf16)

/* The two memory-bound passes around an int8 matrix product, fused: rows to int8 codes, and int32 sums to outputs.
 *
 * Plain C that a compiler vectorises, compiled on first use for the machine it runs on (see native/__init__.py). The pure
 * torch path in torch_runtime.py computes the same; these take one pass over memory where it takes five.
 * A bfloat16 is the upper half of a float32; rounding is to nearest, ties to even. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static const uint32_t NOT_A_NUMBER = 0x7fc00000;

static inline float f32_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline float bf16_to_f32(uint16_t v) { return f32_of((uint32_t)v << 16); }
static inline uint16_t f32_to_bf16(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float identity(float v) { return v; }

/* codes[r, c] = clamp(round(x[r, c] / scale), -128, 127); sums[r] = sum of codes[r, :] when sums is given.
 * scales[r] = *given, or absmax of the row / 127.5 where given is null (1 if the row is all zero).
 *
 * A row that holds NaN or infinity gets the scale NaN, so that all its outputs are NaN. Inputs are read as the integers
 * that their bits are: without the sign these are in the order of the absolute values, infinity and NaN behind all others,
 * so that one integer maximum gives the absmax and tells whether the row is finite. Only finite rows reach the arithmetic,
 * which is compiled with -ffinite-math-only: the clamp takes twice as long without. */
#define QUANTIZE(NAME, T, LOAD, MAGNITUDE, INFINITE)                                                                   \
    void NAME(const T *x, int8_t *codes, float *scales, int32_t *sums, const float *given, int64_t rows, int64_t cols, \
              int threads) {                                                                                           \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                           \
            const T *in = x + r * cols;                                                                                \
            int8_t *out = codes + r * cols;                                                                            \
            T top = 0;                                                                                                 \
            for (int64_t c = 0; c < cols; c++) { T v = (T)(in[c] & MAGNITUDE); top = v > top ? v : top; }              \
            int32_t sum = 0;                                                                                           \
            if (top >= INFINITE) {                                                                                     \
                memcpy(scales + r, &NOT_A_NUMBER, 4);                                                                  \
                memset(out, 0, cols);                                                                                  \
            } else {                                                                                                   \
                const float scale = given ? *given : top > 0 ? LOAD(top) / 127.5f : 1.0f;                              \
                scales[r] = scale;                                                                                     \
                for (int64_t c = 0; c < cols; c++) {                                                                   \
                    float v = rintf(LOAD(in[c]) / scale);                                                              \
                    v = v > 127.0f ? 127.0f : (v < -128.0f ? -128.0f : v);                                             \
                    int32_t q = (int32_t)v;                                                                            \
                    out[c] = (int8_t)q;                                                                                \
                    sum += q;                                                                                          \
                }                                                                                                      \
            }                                                                                                          \
            if (sums) sums[r] = sum;                                                                                   \
        }                                                                                                              \
    }
QUANTIZE(quantize_f32, uint32_t, f32_of, 0x7fffffff, 0x7f800000)
QUANTIZE(quantize_bf16, uint16_t, bf16_to_f32, 0x7fff, 0x7f80)

/* y[r, c] = (acc[r, c] - zero_points[c] * sums[r]) * row_scales[r] * col_scales[c] + bias[c], all in float32, then stored.
 * zero_points, sums and bias may be null. */
#define FINISH(NAME, T, STORE)                                                                                         \
    void NAME(const int32_t *acc, const float *row_scales, const float *col_scales, const float *zero_points,          \
              const int32_t *sums, const float *bias, T *y, int64_t rows, int64_t cols, int threads) {                 \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                           \
            const int32_t *in = acc + r * cols;                                                                        \
            T *out = y + r * cols;                                                                                     \
            const float s = row_scales[r];                                                                             \
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

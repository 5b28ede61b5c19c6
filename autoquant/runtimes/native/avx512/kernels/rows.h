/* What works row by row: embedding, normalisation, rotary positions. */
#pragma once
#include "vectors.h"

/* ---- embedding: rows of an int8 table, (code - zero point) · scale ---- */

/* Returns whether an index is not a row of the table; its output is left as it was. */
int embed(const int64_t *ids, const int8_t *table, const float *scales, const float *zeros, void *y, int64_t rows, int64_t n,
          int64_t entries, int bf16, int threads) {
    int bad = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : bad) if (threads > 1 && rows * n > 65536)
    for (int64_t r = 0; r < rows; r++) {
        if (ids[r] < 0 || ids[r] >= entries) {
            bad = 1;
            continue;
        }
        const __m512 scale = K(scales[ids[r]]), zero = K(zeros ? zeros[ids[r]] : 0.0f);
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 k = first(n - i);
            const __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(k, table + ids[r] * n + i)));
            put(y, r * n + i, bf16, k, _mm512_mul_ps(_mm512_sub_ps(code, zero), scale));
        }
    }
    return bad;
}

/* ---- normalisation: y = (x - mean) / sqrt(var + eps) · weight + bias of each row; rms: without mean and bias ---- */

INLINE void norm_row(const void *x, const float *weight, const float *bias, void *y, int64_t at, int64_t n, float eps, int rms, int bf16) {
    const int64_t whole = n / 32 * 32;
    int64_t i;
    __m512 a = K(0.0f), b = a;
#define OF_TWO(WHAT) for (i = 0; i < whole; i += 32) { WHAT(i, a, 0xffff) WHAT(i + 16, b, 0xffff) } \
                     for (; i < n; i += 16) { const __mmask16 k = first(n - i); WHAT(i, a, k) }
#define SUM(i, to, k) to = _mm512_add_ps(to, get(x, at + (i), bf16, k));
    if (!rms) { OF_TWO(SUM) }
    const __m512 mean = K(_mm512_reduce_add_ps(_mm512_add_ps(a, b)) / n);
    a = b = K(0.0f);
#define SQUARE(i, to, k) { const __m512 d = _mm512_maskz_sub_ps(k, get(x, at + (i), bf16, k), mean); to = _mm512_fmadd_ps(d, d, to); }
    OF_TWO(SQUARE)
    const __m512 factor = K(1.0f / sqrtf(_mm512_reduce_add_ps(_mm512_add_ps(a, b)) / n + eps));
#define SCALED(i, k) _mm512_fmadd_ps(_mm512_mul_ps(_mm512_sub_ps(get(x, at + (i), bf16, k), mean), factor),                    \
                                     _mm512_maskz_loadu_ps(k, weight + (i)), bias ? _mm512_maskz_loadu_ps(k, bias + (i)) : K(0.0f))
    for (i = 0; bf16 && i < whole; i += 32) _mm512_storeu_si512((uint16_t *)y + at + i, pair_of(SCALED(i, 0xffff), SCALED(i + 16, 0xffff)));
    for (; i < n; i += 16) put(y, at + i, bf16, first(n - i), SCALED(i, first(n - i)));
}

void norm(const void *x, const float *weight, const float *bias, void *y, int64_t rows, int64_t n, float eps, int rms, int bf16,
          int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * n > 65536)
    for (int64_t r = 0; r < rows; r++)
        if (bf16) norm_row(x, weight, bias, y, r * n, n, eps, rms, 1);
        else norm_row(x, weight, bias, y, r * n, n, eps, rms, 0);
}

/* ---- rotary positions: x · cos + (-second half of x | first half of x) · sin ---- */

typedef struct {
    const void *x, *cos, *sin;  /* x (batch, heads, rows, width) by its strides; cos, sin (batch or 1, rows, width), dense */
    void *y;  /* (batch, heads, rows, width), its rows dense */
    int64_t batch, heads, rows, width, x_batch, x_head, x_row, y_batch, y_head, c_batch;  /* strides in elements */
    int32_t bf16;
} Rotary;

static void rotate(const Rotary *t, int64_t x, int64_t y, int64_t at) {
    const int64_t half = t->width / 2;
    const int bf16 = t->bf16;
    for (int64_t c = 0; c < half; c += 16) {
        const __mmask16 k = first(half - c);
        const __m512 low = get(t->x, x + c, bf16, k), high = get(t->x, x + half + c, bf16, k);
        put(t->y, y + c, bf16, k, _mm512_fnmadd_ps(high, get(t->sin, at + c, bf16, k), _mm512_mul_ps(low, get(t->cos, at + c, bf16, k))));
        put(t->y, y + half + c, bf16, k,
            _mm512_fmadd_ps(low, get(t->sin, at + half + c, bf16, k), _mm512_mul_ps(high, get(t->cos, at + half + c, bf16, k))));
    }
}
/* Without cos: a copy. */
void rotary(const Rotary *t, int threads) {
    const int64_t size = t->bf16 ? 2 : 4;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && t->batch * t->heads * t->rows * t->width > 131072)
    for (int64_t i = 0; i < t->batch * t->heads * t->rows; i++) {
        const int64_t h = i % t->heads, row = i / t->heads % t->rows, b = i / t->heads / t->rows; /* heads of a row lie side by side */
        const int64_t x = b * t->x_batch + h * t->x_head + row * t->x_row, y = b * t->y_batch + h * t->y_head + row * t->width;
        if (t->cos) rotate(t, x, y, b * t->c_batch + row * t->width);
        else memcpy((char *)t->y + y * size, (const char *)t->x + x * size, t->width * size);
    }
}


/* From int32 sums to outputs: scaled, biased, activated, added to the residual, and rounded once. */
#pragma once
#include "codes.h"

/* streamed: more than the caches hold, as the logits of a language model are; it is written past them. */
typedef struct { const Linear *l; const float *scales; const int32_t *starts; const void *residual; void *y; int bf16, streamed; } Out;
enum { STREAMED = 16 << 20 };

INLINE __m512 total(const Linear *l, __m512i acc, int64_t c, int32_t start) {
    if (l->zero) acc = _mm512_add_epi32(acc, _mm512_mullo_epi32(_mm512_set1_epi32(start / 128), _mm512_loadu_si512(l->zero + c)));
    return _mm512_cvtepi32_ps(acc);
}
INLINE __m512 finish(const Linear *l, __m512 total, int64_t c, __m512 scale) {
    return _mm512_fmadd_ps(total, _mm512_mul_ps(scale, _mm512_loadu_ps(l->scale + c)), _mm512_loadu_ps(l->bias + c));
}
INLINE void store(const Out *o, int64_t row, int64_t c, int64_t width, __m512 f) {
    const __mmask16 k = first(width - c);
    if (!k) return;
    if (o->residual) f = _mm512_add_ps(f, get(o->residual, row * width + c, o->bf16, k));
    put(o->y, row * width + c, o->bf16, k, f);
}
/* Four vectors of sums, 64 outputs of one row. Outlined of the tile so that the product's registers are free. */
INLINE void finish_row(const Out *o, int64_t r, int64_t row, int64_t c, __m512i a0, __m512i a1, __m512i a2, __m512i a3) {
    const Linear *l = o->l;
    const __m512 s = K(o->scales[r]);
    const __m512i sums[] = {a0, a1, a2, a3};
    __m512 f[4];
    for (int i = 0; i < 4; i++) f[i] = finish(l, total(l, sums[i], c + 16 * i, o->starts[r]), c + 16 * i, s);
    for (int i = 0; i < 4; i++) store(o, row, c + 16 * i, l->outputs, activate(f[i], l->act, 0));
}
/* The same of a row in three digits. */
INLINE void finish_digits(const Out *o, int64_t r, int64_t row, int64_t c, const __m512i a[DIGITS][4]) {
    const Linear *l = o->l;
    const int32_t *starts = o->starts + r * DIGITS;
    for (int i = 0; i < 4; i++) {
        const int64_t at = c + 16 * i;
        __m512 f = total(l, a[2][i], at, starts[2]);
        f = _mm512_fmadd_ps(f, K(256.0f), total(l, a[1][i], at, starts[1]));
        f = _mm512_fmadd_ps(f, K(256.0f), total(l, a[0][i], at, starts[0]));
        store(o, row, at, l->outputs, activate(finish(l, f, at, K(o->scales[r])), l->act, 0));
    }
}

/* Where a tile's outputs go, and its residual comes from, is fetched while it is computed. */
INLINE void fetch(const Out *o, int64_t row, int64_t rows, int64_t c) {
    const int64_t width = o->l->outputs, size = o->bf16 ? 2 : 4;
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t at = (r * width + c) * size, end = at + PANEL * size; at < end; at += 64) {
            __builtin_prefetch((const char *)o->y + at, 1);
            if (o->residual) __builtin_prefetch((const char *)o->residual + at, 0);
        }
}

enum { TILE_ROWS = 16, BLOCK = 32 }; /* rows and columns of sums that leave AMX together */
/* A block of sums to the outputs c … c + 32 of `count` rows. Outliers: sums[1] are of the high digits. EXACT: of the lowest digit
 * first. What is the same for all rows stays in registers; `act`, `bf16`, `exact` and `zero` are constants where it is inlined. */
typedef int32_t Block[TILE_ROWS * BLOCK];
INLINE __m512i sums_of(const int32_t *block, int64_t at, int32_t start) {
    return _mm512_add_epi32(_mm512_load_si512(block + at), _mm512_set1_epi32(start));
}
INLINE void finish_block(const Out *o, const Block *sums, int64_t r, int64_t row, int64_t count, int64_t c, int act, int bf16, int exact, int zero) {
    const Linear *l = o->l;
    const int64_t width = l->outputs;
    const int wide = l->wides > 0, whole = c + BLOCK <= width;
    const __m512 scales[2] = {_mm512_loadu_ps(l->scale + c), _mm512_loadu_ps(l->scale + c + 16)};
    const __m512 biases[2] = {_mm512_loadu_ps(l->bias + c), _mm512_loadu_ps(l->bias + c + 16)};
    const __m512i none = _mm512_setzero_si512();
    const __m512i zeros[2] = {zero ? _mm512_loadu_si512(l->zero + c) : none, zero ? _mm512_loadu_si512(l->zero + c + 16) : none};
    const void *residual = o->residual;
    void *y = o->y;
    const int streamed = o->streamed && ((uintptr_t)y | 2 * width) % 64 == 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t *start = o->starts + (exact ? DIGITS : 1) * (r + i);
        const __m512 scale = K(o->scales[r + i]);
        __m512 f[2];
        for (int j = 0; j < 2; j++) {
            const int64_t at = i * BLOCK + 16 * j;
            if (exact) {
                for (int d = DIGITS - 1; d >= 0; d--) {
                    __m512i sum = sums_of(sums[d], at, start[d]);
                    if (zero) sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(start[d] / 128), zeros[j]));
                    f[j] = d == DIGITS - 1 ? _mm512_cvtepi32_ps(sum) : _mm512_fmadd_ps(f[j], K(256.0f), _mm512_cvtepi32_ps(sum));
                }
            } else {
                __m512i sum = sums_of(sums[0], at, *start);
                if (wide) sum = _mm512_add_epi32(sum, _mm512_slli_epi32(_mm512_load_si512(sums[1] + at), 8));
                if (zero) sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(*start / 128), zeros[j]));
                f[j] = _mm512_cvtepi32_ps(sum);
            }
            f[j] = activate(_mm512_fmadd_ps(f[j], _mm512_mul_ps(scale, scales[j]), biases[j]), act, bf16);
        }
        const int64_t to = (row + i) * width + c;
        if (bf16 && whole) {
            if (residual)
                for (int j = 0; j < 2; j++) f[j] = _mm512_add_ps(f[j], get(residual, to + 16 * j, 1, 0xffff));
            if (streamed) _mm512_stream_si512((void *)((uint16_t *)y + to), pair_of(f[0], f[1]));
            else _mm512_storeu_si512((uint16_t *)y + to, pair_of(f[0], f[1]));
            continue;
        }
        for (int j = 0; j < 2; j++) {
            const __mmask16 k = whole ? 0xffff : first(width - c - 16 * j);
            if (residual) f[j] = _mm512_add_ps(f[j], get(residual, to + 16 * j, bf16, k));
            put(y, to + 16 * j, bf16, k, f[j]);
        }
    }
}
#define FINISH_AS(ACT, BF16, EXACT_, ZERO_)                                                                                     \
    static void finish_##ACT##BF16##EXACT_##ZERO_(const Out *o, const Block *sums, int64_t r, int64_t row, int64_t n, int64_t c) { \
        finish_block(o, sums, r, row, n, c, ACT, BF16, EXACT_, ZERO_);                                                          \
    }
#define FINISH_ALL(ACT)                                                                                                        \
    FINISH_AS(ACT, 0, 0, 0) FINISH_AS(ACT, 0, 0, 1) FINISH_AS(ACT, 0, 1, 0) FINISH_AS(ACT, 0, 1, 1)                              \
    FINISH_AS(ACT, 1, 0, 0) FINISH_AS(ACT, 1, 0, 1) FINISH_AS(ACT, 1, 1, 0) FINISH_AS(ACT, 1, 1, 1)
FINISH_ALL(ACT_NONE) FINISH_ALL(ACT_GELU) FINISH_ALL(ACT_GELU_TANH) FINISH_ALL(ACT_SILU) FINISH_ALL(ACT_RELU)
typedef void Finish(const Out *, const Block *, int64_t, int64_t, int64_t, int64_t);
#define FINISHES(ACT) {{{finish_##ACT##000, finish_##ACT##001}, {finish_##ACT##010, finish_##ACT##011}},                         \
                       {{finish_##ACT##100, finish_##ACT##101}, {finish_##ACT##110, finish_##ACT##111}}}
static Finish *const finishes[][2][2][2] = {FINISHES(ACT_NONE), FINISHES(ACT_GELU), FINISHES(ACT_GELU_TANH), FINISHES(ACT_SILU),
                                            FINISHES(ACT_RELU), FINISHES(ACT_NONE) /* SwiGLU: gated later */};

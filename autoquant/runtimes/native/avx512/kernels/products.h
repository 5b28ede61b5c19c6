/* Products with AVX-512: int8 by VNNI, bfloat16 in pairs, float32. */
#pragma once
#include "outputs.h"

enum { TILE = 6 };

#define DOT(acc, b, v) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(b), "v"(v))
#define SUMS(i) __m512i c##i##0, c##i##1, c##i##2, c##i##3;
#define EACH(i, value) c##i##0 = c##i##1 = c##i##2 = c##i##3 = value;
#define ZERO(i) EACH(i, _mm512_setzero_si512())
#define BEGIN(i) EACH(i, _mm512_set1_epi32(start[i]))
#define SHIFTED(c, s) c = _mm512_add_epi32(_mm512_slli_epi32(c, 8), s);
#define SHIFT(i) { const __m512i s = _mm512_set1_epi32(start[i]);                                                              \
                   SHIFTED(c##i##0, s) SHIFTED(c##i##1, s) SHIFTED(c##i##2, s) SHIFTED(c##i##3, s) }
#define LOAD_PANEL const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + 64), b2 = _mm512_load_si512(b + 128),   \
                                 b3 = _mm512_load_si512(b + 192);
#define STEP(i) { const __m512i v = _mm512_set1_epi32(*(const int32_t *)(a + i * stride + q)); \
                  DOT(c##i##0, b0, v); DOT(c##i##1, b1, v); DOT(c##i##2, b2, v); DOT(c##i##3, b3, v); }
#define DONE(i) finish_row(o, r + i, row + i, c, c##i##0, c##i##1, c##i##2, c##i##3);
#define DONE_DIGITS(r, i0, i1, i2)                                                                                             \
    { const __m512i a[DIGITS][4] = {{c##i0##0, c##i0##1, c##i0##2, c##i0##3}, {c##i1##0, c##i1##1, c##i1##2, c##i1##3},        \
                                    {c##i2##0, c##i2##1, c##i2##2, c##i2##3}};                                                 \
      finish_digits(o, r, row, c, a); }
#define ROWS1(F) F(0)
#define ROWS2(F) ROWS1(F) F(1)
#define ROWS3(F) ROWS2(F) F(2)
#define ROWS4(F) ROWS3(F) F(3)
#define ROWS5(F) ROWS4(F) F(4)
#define ROWS6(F) ROWS5(F) F(5)
/* N rows × one panel: a are their codes, r and row the first one's number in the chunk and in y. */
#define TILE_OF(NAME, N, PARTS, END)                                                                                                            \
    static void NAME(const Out *o, const int8_t *a, int64_t stride, const uint8_t *b, int64_t inputs, int64_t r, int64_t row,    \
                        int64_t c) {                                                                                           \
        const int32_t *start = o->starts + r * PARTS;                                                                          \
        fetch(o, row, N / PARTS, c);                                                                                            \
        ROWS##N(SUMS)                                                                                                          \
        if (o->l->wides) {                                                                                                     \
            const int64_t main = round64(inputs), end = main + o->l->wides;                                                    \
            ROWS##N(ZERO)                                                                                                      \
            for (int64_t q = main; q < end; q += 4, b += 256) { LOAD_PANEL ROWS##N(STEP) }                                     \
            ROWS##N(SHIFT)                                                                                                     \
        } else { ROWS##N(BEGIN) }                                                                                              \
        for (int64_t q = 0; q < inputs; q += 4, b += 256) { LOAD_PANEL ROWS##N(STEP) }                                         \
        END                                                                                                                    \
    }
TILE_OF(tile1, 1, 1, ROWS1(DONE)) TILE_OF(tile2, 2, 1, ROWS2(DONE)) TILE_OF(tile3, 3, 1, ROWS3(DONE))
TILE_OF(tile4, 4, 1, ROWS4(DONE)) TILE_OF(tile5, 5, 1, ROWS5(DONE)) TILE_OF(tile6, 6, 1, ROWS6(DONE))
TILE_OF(digits1, 3, DIGITS, DONE_DIGITS(r, 0, 1, 2))
TILE_OF(digits2, 6, DIGITS, DONE_DIGITS(r, 0, 1, 2) row++; DONE_DIGITS(r + 1, 3, 4, 5))
typedef void Tile(const Out *, const int8_t *, int64_t, const uint8_t *, int64_t, int64_t, int64_t, int64_t);
static Tile *const tiles[] = {0, tile1, tile2, tile3, tile4, tile5, tile6}, *const digits[] = {0, digits1, digits2};

/* ---- products of floats, for attention and for weights whose input is not quantized ---- */

/* y (6, columns) = a (6, n) · b (n, columns) with four bytes of a and b as one step: a float32, or two bfloat16 whose
 * products are added. `stride` of a, `ldb` and `ldy` count steps and floats. */
#define FMA(acc, b, v) __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(v))
#define DOT_BF16(acc, b, v) __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(v))
#define WIDE_ZERO(i) __m512 c##i##0 = K(0.0f), c##i##1 = c##i##0, c##i##2 = c##i##0, c##i##3 = c##i##0;
#define WIDE_STEP(i) { const __m512 v = _mm512_set1_ps(a[i * stride]); MUL(c##i##0, b0, v); MUL(c##i##1, b1, v); MUL(c##i##2, b2, v); MUL(c##i##3, b3, v); }
#define WIDE_DONE(i) _mm512_store_ps(y + i * ldy, c##i##0); _mm512_store_ps(y + i * ldy + 16, c##i##1);                   \
                     _mm512_store_ps(y + i * ldy + 32, c##i##2); _mm512_store_ps(y + i * ldy + 48, c##i##3);
#define HALF_ZERO(i) __m512 c##i##0 = K(0.0f), c##i##1 = c##i##0;
#define HALF_STEP(i) { const __m512 v = _mm512_set1_ps(a[i * stride]); MUL(c##i##0, b0, v); MUL(c##i##1, b1, v); }
#define HALF_DONE(i) _mm512_store_ps(y + i * ldy, c##i##0); _mm512_store_ps(y + i * ldy + 16, c##i##1);
#define MULTIPLY(NAME)                                                                                                         \
    static void NAME(const float *left, int64_t stride, const float *right, int64_t ldb, int64_t columns, int64_t n, float *out, \
                     int64_t ldy) {                                                                                            \
        int64_t column = 0;                                                                                                    \
        for (; column + 64 <= columns; column += 64) {                                                                         \
            const float *a = left, *b = right + column;                                                                        \
            float *y = out + column;                                                                                           \
            ROWS6(WIDE_ZERO)                                                                                                   \
            for (int64_t i = 0; i < n; i++, a++, b += ldb) {                                                                   \
                const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16), b2 = _mm512_load_ps(b + 32),                 \
                             b3 = _mm512_load_ps(b + 48);                                                                      \
                ROWS6(WIDE_STEP)                                                                                               \
            }                                                                                                                  \
            ROWS6(WIDE_DONE)                                                                                                   \
        }                                                                                                                      \
        for (; column < columns; column += 32) {                                                                               \
            const float *a = left, *b = right + column;                                                                        \
            float *y = out + column;                                                                                           \
            ROWS6(HALF_ZERO)                                                                                                   \
            for (int64_t i = 0; i < n; i++, a++, b += ldb) {                                                                   \
                const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);                                              \
                ROWS6(HALF_STEP)                                                                                               \
            }                                                                                                                  \
            ROWS6(HALF_DONE)                                                                                                   \
        }                                                                                                                      \
    }
#define MUL FMA
MULTIPLY(multiply_f32)
#undef MUL
#ifdef __AVX512BF16__
#define MUL DOT_BF16
MULTIPLY(multiply_bf16)
#undef MUL
enum { PAIRS = 1 };
#else
#define multiply_bf16 multiply_f32
enum { PAIRS = 0 };
#endif


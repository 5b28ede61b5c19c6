/* An int8 linear layer, its packed weight, and rows of inputs as codes. */
#pragma once
#include "vectors.h"

enum { PANEL = 64 };
enum { STATIC, PER_ROW, PER_TENSOR, EXACT };
enum { DIGITS = 3, MOST_WIDE = 64 };

typedef struct {
    const uint8_t *weight;  /* packed, aligned to 64 */
    const float *scale, *bias;  /* of each output, padded to a panel */
    const int32_t *zero;  /* zero point of each output, padded; null if all are 0 */
    const int32_t *wide;  /* inputs whose codes have 16 bits, PER_ROW only */
    int64_t inputs, outputs, wides;  /* wides: a multiple of 16, at most MOST_WIDE */
    int32_t act, mode;  /* mode: STATIC, PER_ROW or PER_TENSOR scale of the input, or EXACT */
    float input_scale;  /* of STATIC */
} Linear;

INLINE int64_t round64(int64_t n) { return (n + 63) / 64 * 64; }
INLINE int64_t quads_of(const Linear *l) { return l->wides / 4 + (l->inputs + 3) / 4; }

/* weight: int8 (outputs, inputs); to: panels · (wides / 4 + ceil(inputs / 4)) · 256 bytes. */
void pack_linear(const int8_t *weight, uint8_t *to, int64_t outputs, int64_t inputs, const int32_t *wide, int64_t wides) {
    const int64_t quads = wides / 4 + (inputs + 3) / 4, panels = (outputs + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t j = 0; j < PANEL; j++) {
            const int64_t o = p * PANEL + j;
            for (int64_t i = 0; i < quads * 4; i++) {
                const int64_t from = i < wides ? wide[i] : i - wides;
                to[((p * quads + i / 4) * PANEL + j) * 4 + i % 4] =
                    (uint8_t)((o < outputs && from < inputs ? weight[o * inputs + from] : 0) + 128);
            }
        }
}

/* Codes of a chunk of rows; behind those of a row are the high digits of its outliers. `line` has room for one row. */
typedef struct { int8_t *codes; float *scales; int32_t *starts; char *line; int64_t stride; } Rows;
INLINE int64_t parts_of(const Linear *l) { return l->mode == EXACT ? DIGITS : 1; } /* rows of codes of a row */

INLINE float scale_of(float top) { return top > 0.0f ? top / 127.5f : (top == 0.0f ? 1.0f : NAN); }

INLINE float absmax(const void *x, int bf16, int64_t n) { /* NaN or infinity in x: NaN. The bits of |x| order as integers */
    __m512i top = _mm512_setzero_si512();
    int64_t i = 0;
    if (bf16) {
        for (; i + 32 <= n; i += 32)
            top = _mm512_max_epu16(top, _mm512_and_si512(_mm512_loadu_si512((const uint16_t *)x + i), _mm512_set1_epi16(0x7fff)));
        top = _mm512_slli_epi32(_mm512_max_epu32(_mm512_srli_epi32(top, 16), _mm512_and_si512(top, _mm512_set1_epi32(0xffff))), 16);
    }
    for (; i < n; i += 16)
        top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(get(x, i, bf16, first(n - i)))));
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    float f;
    memcpy(&f, &bits, 4);
    return bits < 0x7f800000u ? f : NAN;
}

/* x / scale, rounded as a division rounds it (Markstein's correction of the product with the reciprocal, at a third of the time):
 * otherwise codes that lie on a tie would move. */
INLINE __m512 quotient(__m512 x, __m512 scale, __m512 inverse) {
    const __m512 d = _mm512_mul_ps(x, inverse);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(d, scale, x), inverse, d);
}
INLINE __m512i code_within(__m512 x, __m512 scale, __m512 inverse, float low, float high) {
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(quotient(x, scale, inverse), K(low)), K(high)));
}
INLINE __m512i code(__m512 x, __m512 scale, __m512 inverse) { return code_within(x, scale, inverse, -128.0f, 127.0f); }
/* Of 32 bfloat16: codes of the even ones and of the odd ones, which saturate to 16 bits: (0, 2, 4, 6, 1, 3, 5, 7), (8, …), … */
INLINE __m512i codes_of_32(const uint16_t *x, __m512 scale, __m512 inverse, int bounded) {
    const __m512i v = _mm512_loadu_si512(x);
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xffff0000)));
    if (!bounded) return _mm512_packs_epi32(code(even, scale, inverse), code(odd, scale, inverse));
    return _mm512_packs_epi32(_mm512_cvtps_epi32(quotient(even, scale, inverse)), _mm512_cvtps_epi32(quotient(odd, scale, inverse)));
}
/* bounded: no quotient is beyond what an int32 holds. Codes past n are zeros, to `stride`. */
INLINE void quantize_row(const void *x, int bf16, int64_t n, float scale, int bounded, int8_t *codes, int64_t stride, int32_t *start) {
    const __m512 s = K(scale), inverse = K(1.0f / scale);
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total = _mm512_setzero_si512();
    int64_t i = 0;
    if (bf16) {
        const __m512i pairs = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
        const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        for (; i + 64 <= n; i += 64) {
            const uint16_t *at = (const uint16_t *)x + i;
            const __m512i both = _mm512_packs_epi16(codes_of_32(at, s, inverse, bounded), codes_of_32(at + 32, s, inverse, bounded));
            const __m512i q = _mm512_permutexvar_epi64(halves, _mm512_shuffle_epi8(both, pairs));
            _mm512_storeu_si512(codes + i, q);
            total = _mm512_dpbusd_epi32(total, ones, q);
        }
    }
    const int64_t done = i;
    for (; i < n; i += 16) {
        const __mmask16 k = first(n - i);
        const __m512i q = _mm512_maskz_mov_epi32(k, code(get(x, i, bf16, k), s, inverse));
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(q)); /* past n: zeros, within stride */
    }
    for (; i < stride; i += 16) _mm_storeu_si128((__m128i *)(codes + i), _mm_setzero_si128());
    for (i = done; i < stride; i += 64) total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(codes + i));
    *start = -128 * _mm512_reduce_add_epi32(total);
}

/* The same with a scale that fits all but the outliers; returns it. They get codes of 16 bits, high · 256 + low. */
static float quantize_with_outliers(const Linear *l, const void *x, int bf16, int8_t *codes, int32_t *start, char *line) {
    const int64_t n = l->inputs, main = round64(n);
    float wide[MOST_WIDE];
    int8_t low[MOST_WIDE];
    memcpy(line, x, n * (bf16 ? 2 : 4));
    for (int64_t k = 0; k < l->wides; k++) {
        const int64_t i = l->wide[k];
        if (bf16) {
            const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
            memcpy(wide + k, &bits, 4);
            ((uint16_t *)line)[i] = 0;
        } else {
            wide[k] = ((const float *)x)[i];
            ((float *)line)[i] = 0.0f;
        }
    }
    const float near = absmax(line, bf16, n) / 127.5f, far = absmax(wide, 0, l->wides) / 32639.0f;
    const float scale = near != near || far != far ? NAN : near > far ? near : far > 0.0f ? far : 1.0f;
    quantize_row(line, bf16, n, scale, 0, codes, main, start);
    __m512i total = _mm512_setzero_si512();
    for (int64_t k = 0; k < l->wides; k += 16) {
        const __m512i c = code_within(_mm512_loadu_ps(wide + k), K(scale), K(1.0f / scale), -32640.0f, 32639.0f);
        total = _mm512_add_epi32(total, c);
        _mm_storeu_si128((__m128i *)(low + k), _mm512_cvtepi32_epi8(c));
        _mm_storeu_si128((__m128i *)(codes + main + k), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(128)), 8)));
    }
    for (int64_t k = l->wides; k < round64(l->wides); k += 16) _mm_storeu_si128((__m128i *)(codes + main + k), _mm_setzero_si128());
    for (int64_t k = 0; k < l->wides; k++) codes[l->wide[k]] = low[k];
    *start -= 128 * _mm512_reduce_add_epi32(total);
    return scale;
}

INLINE float exact_scale(float top) { /* the power of two that makes the largest at most 2^22 */
    int exponent;
    if (!(top > 0.0f)) return top == 0.0f ? 1.0f : NAN;
    frexpf(top, &exponent);
    return ldexpf(1.0f, exponent - 22 < -126 ? -126 : exponent - 22);
}

/* Three rows of codes, the lowest digit first: x / scale = c0 + 256 c1 + 65536 c2, each of -128 … 127. */
INLINE void split_row(const void *x, int bf16, int64_t n, float scale, int8_t *codes, int64_t stride, int32_t *starts) {
    const __m512 inverse = K(1.0f / scale);
    __m512i totals[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t i = 0; i < stride; i += 16) {
        __m512i v = i < n ? _mm512_cvtps_epi32(_mm512_mul_ps(get(x, i, bf16, first(n - i)), inverse)) : _mm512_setzero_si512();
        for (int d = 0; d < DIGITS; d++) {
            const __m128i digit = _mm512_cvtepi32_epi8(v);
            totals[d] = _mm512_add_epi32(totals[d], _mm512_cvtepi8_epi32(digit));
            _mm_storeu_si128((__m128i *)(codes + d * stride + i), digit);
            v = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
        }
    }
    for (int d = 0; d < DIGITS; d++) starts[d] = -128 * _mm512_reduce_add_epi32(totals[d]);
}

INLINE int64_t stride_of(const Linear *l) { return round64(l->inputs) + round64(l->wides); }
INLINE int64_t whole_tiles(int64_t rows) { return (rows + 15) / 16 * 16; } /* of which those too many may hold anything */
static Rows make_rows(const Linear *l, int64_t rows, char *memory) {
    Rows x = {(int8_t *)memory, 0, 0, 0, stride_of(l)};
    x.scales = (float *)(memory + whole_tiles(rows) * parts_of(l) * x.stride);
    x.starts = (int32_t *)(x.scales + rows);
    x.line = (char *)(x.starts + rows * parts_of(l));
    return x;
}
static size_t bytes_of_rows(const Linear *l, int64_t rows) {
    const int64_t line = l->wides ? l->inputs * 4 : 0, numbers = rows * (parts_of(l) + 1) * 4;
    return round64(whole_tiles(rows) * parts_of(l) * stride_of(l) + numbers + line + 64);
}

INLINE void quantize_rows_(const Linear *l, const void *x, int bf16, int64_t row, int64_t r, int64_t count, float common, const Rows *to) {
    const int64_t n = l->inputs, width = bf16 ? 2 : 4;
    for (int64_t i = 0; i < count; i++) {
        const char *in = (const char *)x + (row + i) * n * width;
        if (l->mode == EXACT) {
            const float unit = to->scales[r + i] = exact_scale(absmax(in, bf16, n));
            split_row(in, bf16, n, unit, to->codes + (r + i) * DIGITS * to->stride, to->stride, to->starts + (r + i) * DIGITS);
            continue;
        }
        if (l->wides) {
            int8_t *codes = to->codes + (r + i) * to->stride;
            to->scales[r + i] = quantize_with_outliers(l, in, bf16, codes, to->starts + r + i, to->line);
            continue;
        }
        const float scale = l->mode == PER_ROW ? scale_of(absmax(in, bf16, n)) : common;
        to->scales[r + i] = scale;
        quantize_row(in, bf16, n, scale, l->mode != STATIC && scale > 1e-30f, to->codes + (r + i) * to->stride, to->stride, to->starts + r + i);
        /* a static scale hides what is not finite: look, so that the row's output is NaN */
        if (l->mode == STATIC && absmax(in, bf16, n) != absmax(in, bf16, n)) to->scales[r + i] = NAN;
    }
}


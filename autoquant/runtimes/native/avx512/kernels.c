/* The kernels of the graph runtime for processors with AVX-512 VNNI: int8 linear layers with everything around the product
 * fused into it, attention, and normalisation. Compiled to nothing elsewhere (`has_vnni` then says so, and torch runs them).
 *
 * Linear: vpdpbusd multiplies unsigned by signed bytes. Weights are packed once as w + 128, so a row's int32 sums start at -128
 * times the sum of its codes; that sum times the zero point of an asymmetric weight is taken off at the end: exact.
 * An input that is not quantized (EXACT) is a 23-bit fixed-point number of its row, with a power of two as its scale: three
 * digits to the base 256, three products. A bfloat16 keeps all its bits down to 2^-15 of the row's largest; and the weight is
 * never expanded, so that few rows cost what it takes to read it.
 * Outlier channels (`wide`) have codes of 16 bits, in two digits: the high ones are multiplied first, with copies of the
 * weight's columns that lie before the others in each panel, and the sums shifted by 8 bits; the low ones are codes like all.
 * Packed weight: panels of 64 outputs; in a panel, for each 4 inputs, 64 × 4 bytes (the last panel and the last 4 inputs are
 * padded with zeros). A 6 × 64 tile of sums stays in registers over all inputs and is scaled, biased, activated, added to
 * the residual and rounded once, on its way to memory. */
#include <stdint.h>
#include <stdlib.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
enum { PANEL = 64, TILE = 6, CHUNK = 96 };
enum { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_SILU, ACT_RELU, ACT_SWIGLU };
enum { STATIC, PER_ROW, PER_TENSOR, EXACT };
enum { DIGITS = 3, MOST_WIDE = 64 };

int has_vnni(void) { return 1; }

/* ---- elements: float32 or bfloat16 in memory, float32 in registers ---- */

INLINE __m512 widen(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
INLINE __m256i narrow(__m512 f) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(f);
#else
    __m512i u = _mm512_castps_si512(f), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    u = _mm512_mask_mov_epi32(u, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16));
#endif
}
INLINE __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
INLINE __m512 get(const void *x, int64_t i, int bf16, __mmask16 k) {
    return bf16 ? widen(_mm256_maskz_loadu_epi16(k, (const uint16_t *)x + i)) : _mm512_maskz_loadu_ps(k, (const float *)x + i);
}
INLINE void put(void *y, int64_t i, int bf16, __mmask16 k, __m512 f) {
    if (k == 0xffff) {
        if (bf16) _mm256_storeu_si256((__m256i *)((uint16_t *)y + i), narrow(f));
        else _mm512_storeu_ps((float *)y + i, f);
    } else if (bf16) _mm256_mask_storeu_epi16((uint16_t *)y + i, k, narrow(f));
    else _mm512_mask_storeu_ps((float *)y + i, k, f);
}

/* ---- functions of one vector ---- */

#define K(v) _mm512_set1_ps(v)
INLINE __m512 exp_(__m512 x) { /* Cephes expf: relative error 2e-7 */
    x = _mm512_min_ps(_mm512_max_ps(x, K(-87.3f)), K(88.3f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, K(1.44269504f)), 8);
    __m512 f = _mm512_fnmadd_ps(n, K(-2.12194440e-4f), _mm512_fnmadd_ps(n, K(0.693359375f), x));
    __m512 p = _mm512_fmadd_ps(K(1.9875691500e-4f), f, K(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, K(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, K(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, K(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, K(5.0000001201e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), f, _mm512_add_ps(f, K(1.0f))), n);
}
INLINE __m512 sigmoid(__m512 x) { return _mm512_div_ps(K(1.0f), _mm512_add_ps(K(1.0f), exp_(_mm512_sub_ps(K(0.0f), x)))); }
INLINE __m512 gelu(__m512 x) { /* x · (1 + erf(x / √2)) / 2; erf as Eigen's rational function: absolute error 2e-7 */
    const __m512 z = _mm512_range_ps(_mm512_mul_ps(x, K(0.70710678f)), K(4.0f), 2), w = _mm512_mul_ps(z, z);
    __m512 p = _mm512_fmadd_ps(K(-2.72614225801306e-10f), w, K(2.77068142495902e-08f));
    p = _mm512_fmadd_ps(p, w, K(-2.10102402082508e-06f));
    p = _mm512_fmadd_ps(p, w, K(-5.69250639462346e-05f));
    p = _mm512_fmadd_ps(p, w, K(-7.34990630326855e-04f));
    p = _mm512_fmadd_ps(p, w, K(-2.95459980854025e-03f));
    p = _mm512_fmadd_ps(p, w, K(-1.60960333262415e-02f));
    __m512 q = _mm512_fmadd_ps(K(-1.45660718464996e-05f), w, K(-2.13374055278905e-04f));
    q = _mm512_fmadd_ps(q, w, K(-1.68282697438203e-03f));
    q = _mm512_fmadd_ps(q, w, K(-7.37332916720468e-03f));
    q = _mm512_fmadd_ps(q, w, K(-1.42647390514189e-02f));
    __m512 r = _mm512_rcp14_ps(q); /* one Newton step: 1e-8 */
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(q, r, K(2.0f)));
    const __m512 half = _mm512_mul_ps(x, K(0.5f));
    return _mm512_fmadd_ps(half, _mm512_mul_ps(_mm512_mul_ps(z, p), r), half);
}
INLINE __m512 gelu_tanh(__m512 x) { /* x / (1 + exp(-2 · 0.79788456 (x + 0.044715 x³))) */
    __m512 inner = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), K(0.044715f), K(1.0f)));
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(inner, K(1.59576912f))));
}
INLINE __m512 activate(__m512 x, int act) {
    switch (act) {
        case ACT_GELU: return gelu(x);
        case ACT_GELU_TANH: return gelu_tanh(x);
        case ACT_SILU: return _mm512_mul_ps(x, sigmoid(x));
        case ACT_RELU: return _mm512_max_ps(x, K(0.0f));
        default: return x;
    }
}

/* ---- linear ---- */

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

/* round(clamp(x / scale, low, high)). The quotient is rounded as a division rounds it (Markstein's correction of the product
 * with the reciprocal, at a third of the time): otherwise codes that lie on a tie would move. */
INLINE __m512i code_within(__m512 x, __m512 scale, __m512 inverse, float low, float high) {
    __m512 d = _mm512_mul_ps(x, inverse);
    d = _mm512_fmadd_ps(_mm512_fnmadd_ps(d, scale, x), inverse, d);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(d, K(low)), K(high)));
}
INLINE __m512i code(__m512 x, __m512 scale, __m512 inverse) { return code_within(x, scale, inverse, -128.0f, 127.0f); }
INLINE void quantize_row(const void *x, int bf16, int64_t n, float scale, int8_t *codes, int64_t stride, int32_t *start) {
    const __m512 s = K(scale), inverse = K(1.0f / scale);
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total = _mm512_setzero_si512();
    int64_t i = 0;
    if (bf16) /* 32 at a time: the even ones, the odd ones, and side by side again */
        for (; i + 32 <= n; i += 32) {
            const __m512i v = _mm512_loadu_si512((const uint16_t *)x + i);
            const __m512i even = code(_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), s, inverse);
            const __m512i odd = code(_mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xffff0000))), s, inverse);
            const __m512i both = _mm512_mask_mov_epi8(even, 0x2222222222222222ull, _mm512_slli_epi32(odd, 8));
            _mm256_storeu_si256((__m256i *)(codes + i), _mm512_cvtepi32_epi16(both));
        }
    for (; i < n; i += 16) {
        const __mmask16 k = first(n - i);
        const __m512i q = _mm512_maskz_mov_epi32(k, code(get(x, i, bf16, k), s, inverse));
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(q)); /* past n: zeros, within stride */
    }
    for (; i < stride; i += 16) _mm_storeu_si128((__m128i *)(codes + i), _mm_setzero_si128());
    for (i = 0; i < stride; i += 64) total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(codes + i));
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
    quantize_row(line, bf16, n, scale, codes, main, start);
    __m512i total = _mm512_setzero_si512();
    for (int64_t k = 0; k < l->wides; k += 16) {
        const __m512i c = code_within(_mm512_loadu_ps(wide + k), K(scale), K(1.0f / scale), -32640.0f, 32639.0f);
        total = _mm512_add_epi32(total, c);
        _mm_storeu_si128((__m128i *)(low + k), _mm512_cvtepi32_epi8(c));
        _mm_storeu_si128((__m128i *)(codes + main + k), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(128)), 8)));
    }
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

typedef struct { const Linear *l; const float *scales; const int32_t *starts; const void *residual; void *y; int bf16; } Out;

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
    for (int i = 0; i < 4; i++) store(o, row, c + 16 * i, l->outputs, activate(f[i], l->act));
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
        store(o, row, at, l->outputs, activate(finish(l, f, at, K(o->scales[r])), l->act));
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

/* Assembler, because gcc spills the intrinsic's sums to the stack. */
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

/* A panel as pairs of bfloat16, (inputs / 2, 64): w - zero point is an integer below 256, which bfloat16 holds exactly. */
static void expand_panel(const Linear *l, int64_t p, float *to) {
    const int64_t quads = (l->inputs + 3) / 4;
    const uint8_t *from = l->weight + p * quads * 256;
    const __m512i byte = _mm512_set1_epi32(255), top = _mm512_set1_epi32(0xffff0000);
    for (int64_t q = 0; q < quads; q++)
        for (int i = 0; i < PANEL; i += 16, from += 64) {
            const __m512i w = _mm512_load_si512(from), middle = _mm512_set1_epi32(128);
            const __m512i shift = l->zero ? _mm512_add_epi32(middle, _mm512_loadu_si512(l->zero + p * PANEL + i)) : middle;
            __m512i f[4];
            for (int j = 0; j < 4; j++) {
                const __m512i code = _mm512_and_si512(_mm512_srli_epi32(w, 8 * j), byte);
                f[j] = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, shift)));
            }
            for (int j = 0; j < 4; j += 2)
                _mm512_store_si512(to + (2 * q + j / 2) * PANEL + i,
                                   _mm512_or_si512(_mm512_srli_epi32(f[j], 16), _mm512_and_si512(f[j + 1], top)));
        }
}

enum { EXPANDED_ROWS = 192, LEAST_EXPANDED = 2 * TILE };
static int expands(const Linear *l, int64_t rows, int bf16) {
    return PAIRS && bf16 && l->mode == EXACT && rows >= LEAST_EXPANDED && l->inputs % 2 == 0;
}
static size_t bytes_of_expanded(const Linear *l) { return ((l->inputs + 3) / 4 * 2 + TILE) * PANEL * sizeof(float); }

/* All panels of `rows` rows of bfloat16, at least TILE of them: the last tile begins early rather than end early. */
static void product_expanded(const Out *o, const uint16_t *x, int64_t rows, int64_t row, float *panel) {
    const Linear *l = o->l;
    float *out = panel + (l->inputs + 3) / 4 * 2 * PANEL;
    for (int64_t p = 0; p * PANEL < l->outputs; p++) {
        expand_panel(l, p, panel);
        for (int64_t at = 0; at < rows; at += TILE) {
            const int64_t r = at + TILE <= rows ? at : rows - TILE;
            multiply_bf16((const float *)(x + r * l->inputs), l->inputs / 2, panel, PANEL, PANEL, l->inputs / 2, out, PANEL);
            for (int64_t i = 0; i < TILE; i++)
                for (int64_t c = 0; c < PANEL; c += 16)
                    store(o, row + r + i, p * PANEL + c, l->outputs,
                          activate(finish(l, _mm512_load_ps(out + i * PANEL + c), p * PANEL + c, K(1.0f)), l->act));
        }
    }
}

/* Panels p0 … p1 of `rows` rows, whose first is number `row` in y. */
static void product(const Out *o, const Rows *x, int64_t rows, int64_t row, int64_t p0, int64_t p1) {
    const int64_t quads = quads_of(o->l), parts = parts_of(o->l), most = TILE / parts;
    Tile *const *of = parts == 1 ? tiles : digits;
    for (int64_t p = p0; p < p1; p++)
        for (int64_t r = 0; r < rows; r += most)
            of[rows - r < most ? rows - r : most](o, x->codes + r * parts * x->stride, x->stride, o->l->weight + p * quads * 256,
                                                  (o->l->inputs + 3) / 4 * 4, r, row + r, p * PANEL);
}

static __thread void *scratch_memory;
static __thread size_t scratch_size;
static void *scratch(size_t bytes) { /* of this thread, aligned to 64 */
    if (bytes > scratch_size) {
        free(scratch_memory);
        scratch_size = (bytes + 65535) / 65536 * 65536;
        scratch_memory = aligned_alloc(64, scratch_size);
    }
    return scratch_memory;
}
INLINE int64_t stride_of(const Linear *l) { return round64(l->inputs) + round64(l->wides); }
static Rows make_rows(const Linear *l, int64_t rows, char *memory) {
    Rows x = {(int8_t *)memory, 0, 0, 0, stride_of(l)};
    x.scales = (float *)(memory + rows * parts_of(l) * x.stride);
    x.starts = (int32_t *)(x.scales + rows);
    x.line = (char *)(x.starts + rows * parts_of(l));
    return x;
}
static size_t bytes_of_rows(const Linear *l, int64_t rows) {
    const int64_t line = l->wides ? l->inputs * 4 : 0;
    return round64(rows * (parts_of(l) * (stride_of(l) + 4) + 4) + line + 64);
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
        quantize_row(in, bf16, n, scale, to->codes + (r + i) * to->stride, to->stride, to->starts + r + i);
        /* a static scale hides what is not finite: look, so that the row's output is NaN */
        if (l->mode == STATIC && absmax(in, bf16, n) != absmax(in, bf16, n)) to->scales[r + i] = NAN;
    }
}

/* y = silu(gate) · up of `rows` rows of (gate | up), each `n` wide. */
static void gate(const void *both, void *y, int64_t rows, int64_t row, int64_t n, int bf16) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 k = first(n - i);
            const __m512 g = activate(get(both, 2 * r * n + i, bf16, k), ACT_SILU);
            put(y, (row + r) * n + i, bf16, k, _mm512_mul_ps(g, get(both, (2 * r + 1) * n + i, bf16, k)));
        }
}

/* Bytes that `chunk` needs for `count` rows: of its input, and behind it of what is yet to be gated. */
static size_t bytes_of_input(const Linear *l, int64_t count, int64_t rows, int bf16) {
    return expands(l, rows, bf16) ? bytes_of_expanded(l) : bytes_of_rows(l, count);
}
static size_t bytes_of_chunk(const Linear *l, int64_t count, int64_t rows, int bf16) {
    return bytes_of_input(l, count, rows, bf16) + (l->act == ACT_SWIGLU ? (count * l->outputs * 4 + 63) / 64 * 64 : 0);
}
/* Rows x_row … + count of x become rows y_row … of y (and of the residual), by one thread in `memory`; `rows` in all. */
static void chunk(const Linear *l, const void *x, const void *residual, void *y, int64_t x_row, int64_t y_row, int64_t count, int64_t rows,
                  float common, int bf16, char *memory) {
    const int gated = l->act == ACT_SWIGLU, wide = expands(l, rows, bf16) && count >= TILE;
    const size_t own = bytes_of_input(l, count, rows, bf16);
    Out o = {l, 0, 0, residual, gated ? memory + own : y, bf16};
    if (wide) product_expanded(&o, (const uint16_t *)x + x_row * l->inputs, count, gated ? 0 : y_row, (float *)memory);
    else {
        const Rows mine = make_rows(l, count, memory);
        quantize_rows_(l, x, bf16, x_row, 0, count, common, &mine);
        o.scales = mine.scales, o.starts = mine.starts;
        product(&o, &mine, count, gated ? 0 : y_row, 0, (l->outputs + PANEL - 1) / PANEL);
    }
    if (gated) gate(memory + own, y, count, y_row, l->outputs / 2, bf16);
}
/* Rows of a chunk so that each thread gets the same number of chunks of at most `most`. */
static int64_t step_of(int64_t rows, int64_t most, int threads) {
    const int64_t chunks = ((rows + most - 1) / most + threads - 1) / threads * threads;
    return ((rows + chunks - 1) / chunks + TILE - 1) / TILE * TILE;
}
static int many(int64_t rows, int threads) { return rows >= 2 * 16 * threads || threads == 1; }

/* y (rows, outputs) = act(x Wᵀ + b) + residual; x (rows, inputs) and y, residual dense, float32 or bfloat16. With SwiGLU
 * the first half of the outputs gates the second, y is (rows, outputs / 2), and there is no residual. Many rows: each thread
 * quantizes and multiplies chunks of its own, so that codes and sums never leave its cache. Few rows: the codes are shared and
 * each thread takes some panels. */
void linear(const Linear *l, const void *x, const void *residual, void *y, int64_t rows, int bf16, int threads) {
    const int64_t panels = (l->outputs + PANEL - 1) / PANEL;
    const int gated = l->act == ACT_SWIGLU;
    if (!rows) return;
    float common = l->input_scale;
    if (l->mode == PER_TENSOR) {
        float top = 0.0f;
        const int64_t n = l->inputs;
        int bad = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : top) reduction(| : bad) if (threads > 1 && rows * n > 65536)
        for (int64_t r = 0; r < rows; r++) {
            const float found = absmax((const char *)x + r * n * (bf16 ? 2 : 4), bf16, n);
            bad |= found != found;
            top = found > top ? found : top;
        }
        common = bad ? NAN : scale_of(top);
    }
    if (many(rows, threads)) {
        const int64_t step = step_of(rows, expands(l, rows, bf16) ? EXPANDED_ROWS : CHUNK / parts_of(l), threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t row = 0; row < rows; row += step) {
            const int64_t count = rows - row < step ? rows - row : step;
            chunk(l, x, residual, y, row, row, count, rows, common, bf16, scratch(bytes_of_chunk(l, count, rows, bf16)));
        }
        return;
    }
    const size_t own = bytes_of_rows(l, rows);
    char *memory = scratch(own + (gated ? rows * l->outputs * 4 : 0));
    const Rows all = make_rows(l, rows, memory);
    quantize_rows_(l, x, bf16, 0, 0, rows, common, &all);
    const Out o = {l, all.scales, all.starts, residual, gated ? memory + own : y, bf16};
#pragma omp parallel for schedule(static) num_threads(threads) if (panels * rows * l->inputs > 16384)
    for (int64_t p = 0; p < panels; p++) product(&o, &all, rows, 0, p, p + 1);
    if (gated) gate(memory + own, y, rows, 0, l->outputs / 2, bf16);
}

/* y = second(first(x)) + residual. Many rows: what is between them stays in the cache; few: in `between` (rows, inputs of
 * second), which may be null where there are many. The second's scale must not be one of all rows. */
void linear_pair(const Linear *first, const Linear *second, const void *x, const void *residual, void *between, void *y, int64_t rows,
                 int bf16, int threads) {
    if (!many(rows, threads) || first->mode == PER_TENSOR) {
        linear(first, x, 0, between, rows, bf16, threads);
        linear(second, between, residual, y, rows, bf16, threads);
        return;
    }
    const int wide = expands(first, rows, bf16) || expands(second, rows, bf16);
    const int64_t step = step_of(rows, wide ? EXPANDED_ROWS : CHUNK, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row += step) {
        const int64_t count = rows - row < step ? rows - row : step;
        const size_t a = bytes_of_chunk(first, count, rows, bf16), b = bytes_of_chunk(second, count, rows, bf16);
        char *memory = scratch((a > b ? a : b) + count * second->inputs * (bf16 ? 2 : 4)), *inner = memory + (a > b ? a : b);
        chunk(first, x, 0, inner, row, 0, count, rows, first->input_scale, bf16, memory);
        chunk(second, inner, residual, y, 0, row, count, rows, second->input_scale, bf16, memory);
    }
}

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

void norm(const void *x, const float *weight, const float *bias, void *y, int64_t rows, int64_t n, float eps, int rms, int bf16,
          int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * n > 65536)
    for (int64_t r = 0; r < rows; r++) {
        __m512 sum = K(0.0f), squares = K(0.0f);
        if (!rms)
            for (int64_t i = 0; i < n; i += 16) sum = _mm512_add_ps(sum, get(x, r * n + i, bf16, first(n - i)));
        const __m512 mean = K(_mm512_reduce_add_ps(sum) / n);
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 k = first(n - i);
            const __m512 d = _mm512_maskz_sub_ps(k, get(x, r * n + i, bf16, k), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        const __m512 factor = K(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / n + eps));
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 k = first(n - i);
            const __m512 d = _mm512_mul_ps(_mm512_sub_ps(get(x, r * n + i, bf16, k), mean), factor);
            const __m512 b = bias ? _mm512_maskz_loadu_ps(k, bias + i) : K(0.0f);
            put(y, r * n + i, bf16, k, _mm512_fmadd_ps(d, _mm512_maskz_loadu_ps(k, weight + i), b));
        }
    }
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

/* ---- attention ---- */

typedef struct {
    const void *q, *k, *v;  /* (batch, length, heads, width) by the strides below; width is dense */
    void *y;  /* (batch, queries, heads, width), dense */
    const void *mask;  /* (batch, heads, queries, keys) by its strides, or null */
    int64_t batch, heads, groups, queries, keys, width;  /* groups: query heads a key head serves */
    int64_t q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head;  /* strides in elements */
    int64_t m_batch, m_head, m_row, m_key;
    float scale;
    int32_t causal, bf16, mask_kind;  /* mask_kind: 1 bool (true: attend), 2 added float32, 3 added bfloat16 */
} Attention;

INLINE __m512 masked(const Attention *t, __m512 s, int64_t b, int64_t h, int64_t row, int64_t key, __mmask16 in) {
    const int64_t at = b * t->m_batch + h * t->m_head + row * t->m_row + key * t->m_key;
    if (t->mask_kind == 1) {
        __mmask16 keep;
        if (t->m_key) keep = _mm_mask_test_epi8_mask(in, _mm_maskz_loadu_epi8(in, (const uint8_t *)t->mask + at), _mm_set1_epi8(-1));
        else keep = ((const uint8_t *)t->mask)[at] ? in : 0;
        return _mm512_mask_mov_ps(K(-INFINITY), keep, s);
    }
    return _mm512_add_ps(s, get(t->mask, at, t->mask_kind == 3, in));
}

INLINE __m512 exp2_(__m512 t, int coarse) { /* minimax on the fraction of t: relative error 7e-8; coarse, for a bfloat16: 7e-5 */
    const __m512 f = _mm512_reduce_ps(t, 9); /* t - floor(t); 0 of -infinity, of which scalef makes 0 */
    __m512 p = coarse ? K(7.802452307e-2f) : _mm512_fmadd_ps(K(1.87757668e-3f), f, K(8.989340283e-3f));
    if (!coarse) p = _mm512_fmadd_ps(p, f, K(5.582631767e-2f));
    p = _mm512_fmadd_ps(p, f, K(coarse ? 2.260671678e-1f : 2.401536173e-1f));
    p = _mm512_fmadd_ps(p, f, K(coarse ? 6.958335289e-1f : 6.931530731e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, K(coarse ? 9.999252205e-1f : 9.999999251e-1f)), t);
}

/* Softmax of one row of scores, left unnormalised, `to` floats or (half) bfloat16; returns 1 / sum. Past the keys seen: zeros.
 * A row without any key gives zeros, as torch does. */
INLINE float soften(const Attention *t, float *s, void *to, int half, int64_t b, int64_t h, int64_t row, int64_t keys, int64_t padded) {
    const int64_t seen = t->causal && row + 1 < keys ? row + 1 : keys;
    const float log2e = 1.44269504f;
    __m512 top = K(-INFINITY), sum = K(0.0f);
    for (int64_t i = 0; i < seen; i += 16) {
        const __mmask16 in = first(seen - i);
        __m512 x = _mm512_mul_ps(_mm512_load_ps(s + i), K(t->scale));
        if (t->mask) {
            x = masked(t, x, b, h, row, i, in);
            _mm512_store_ps(s + i, x);
        }
        top = _mm512_mask_max_ps(top, in, top, x);
    }
    const float most = _mm512_reduce_max_ps(top);
    if (most == -INFINITY) {
        memset(to, 0, padded * (half ? 2 : sizeof(float)));
        return 0.0f;
    }
    const __m512 factor = K(t->mask ? log2e : t->scale * log2e), least = K(-most * log2e);
    int64_t i = 0;
    for (; i < seen; i += 16) {
        const __m512 e = _mm512_maskz_mov_ps(first(seen - i), exp2_(_mm512_fmadd_ps(_mm512_load_ps(s + i), factor, least), half));
        sum = _mm512_add_ps(sum, e);
        if (half) _mm256_store_si256((__m256i *)((uint16_t *)to + i), narrow(e));
        else _mm512_store_ps((float *)to + i, e);
    }
    for (; i < padded; i += 16)
        if (half) _mm256_store_si256((__m256i *)((uint16_t *)to + i), _mm256_setzero_si256());
        else _mm512_store_ps((float *)to + i, K(0.0f));
    return 1.0f / _mm512_reduce_add_ps(sum);
}

/* 16 steps of 16 rows, `row` bytes apart, transposed to 16 rows of 16 steps, `ldy` apart; rows from `rows` on are zeros. */
INLINE void transpose16(const char *x, int64_t row, int64_t rows, int64_t steps, float *y, int64_t ldy) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = i < rows ? _mm512_maskz_loadu_epi32(first(steps), x + i * row) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16 && i < steps; i++) _mm512_store_si512(y + i * ldy, t[i]);
}

/* The last key that any of these query rows sees, + 1: padding behind it, and a causal mask's other half, cost nothing. */
INLINE int64_t reach(const Attention *t, int64_t b, int64_t h, int64_t row, int64_t count) {
    int64_t keys = t->causal && row + count < t->keys ? row + count : t->keys;
    if (t->mask_kind != 1 || t->m_key != 1) return keys;
    int64_t most = 0;
    for (int64_t r = row; r < (t->m_row ? row + count : row + 1); r++) {
        const uint8_t *m = (const uint8_t *)t->mask + b * t->m_batch + h * t->m_head + r * t->m_row;
        int64_t i = keys;
        while (i > most) {
            const int64_t n = i - most < 64 ? i - most : 64;
            const __mmask64 in = n == 64 ? ~0ull : (1ull << n) - 1;
            const __m512i bytes = _mm512_maskz_loadu_epi8(in, m + i - n);
            const __mmask64 on = _mm512_test_epi8_mask(bytes, bytes);
            if (on) { most = i - n + 64 - __builtin_clzll(on); break; }
            i -= n;
        }
    }
    return most;
}

/* Rows of one head are far apart: no processor foresees them. */
static void fetch_head(const void *x, int64_t at, int64_t rows, int64_t row, int64_t width, int64_t element) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width * element; c += 64) __builtin_prefetch((const char *)x + (at + r * row) * element + c);
}
static void fetch_heads(const Attention *t, int64_t b, int64_t kh) {
    const int64_t element = t->bf16 ? 2 : 4;
    if (b >= t->batch) return;
    fetch_head(t->k, b * t->k_batch + kh * t->k_head, t->keys, t->k_row, t->width, element);
    fetch_head(t->v, b * t->v_batch + kh * t->v_head, t->keys, t->v_row, t->width, element);
    for (int64_t h = kh * t->groups; h < (kh + 1) * t->groups; h++)
        fetch_head(t->q, b * t->q_batch + h * t->q_head, t->queries, t->q_row, t->width, element);
}

/* One key head of one batch row, and all query heads that it serves. Where the processor multiplies bfloat16, two of them
 * make a step; otherwise both are widened. Keys are laid down transposed. */
static void attend(const Attention *t, int64_t b, int64_t kh) {
    const int pairs = PAIRS && t->bf16 && t->width % 2 == 0;
    const int64_t d = t->width, wide = (d + 31) / 32 * 32, keys = t->keys, padded = (keys + 31) / 32 * 32;
    const int64_t steps = pairs ? d / 2 : d, key_steps = pairs ? (keys + 1) / 2 : keys;
    const size_t element = t->bf16 ? 2 : 4;
    float *kt = scratch(sizeof(float) * ((d + 16) * padded + (keys + 1) * wide + TILE * (2 * padded + 2 * wide) + 16 * wide));
    float *values = kt + (d + 16) * padded, *scores = values + (keys + 1) * wide, *soft = scores + TILE * padded;
    float *query = soft + TILE * padded, *out = query + TILE * wide, *line = out + TILE * wide;
    const char *k = (const char *)t->k + (b * t->k_batch + kh * t->k_head) * element;
    const char *v = (const char *)t->v + (b * t->v_batch + kh * t->v_head) * element;
    for (int64_t i = 0; i < padded; i += 16)
        for (int64_t c = 0; c < steps; c += 16) {
            const int64_t rows = keys - i < 16 ? (keys > i ? keys - i : 0) : 16;
            if (!pairs && t->bf16) { /* widened first */
                for (int64_t r = 0; r < rows; r++) _mm512_store_ps(line + r * 16, get(k, (i + r) * t->k_row + c, 1, first(d - c)));
                transpose16((const char *)line, 64, rows, steps - c, kt + c * padded + i, padded);
            } else transpose16(k + (i * t->k_row) * element + c * 4, t->k_row * element, rows, steps - c, kt + c * padded + i, padded);
        }
    for (int64_t i = 0; i < key_steps; i++)
        for (int64_t c = 0; c < wide; c += 16) {
            const __mmask16 in = first(d - c);
            if (!pairs) {
                _mm512_store_ps(values + i * wide + c, get(v, i * t->v_row + c, t->bf16, in));
                continue;
            }
            const uint16_t *row = (const uint16_t *)v + 2 * i * t->v_row + c;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, row));
            const __m512i high = 2 * i + 1 < keys ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, row + t->v_row)) : _mm512_setzero_si512();
            _mm512_store_si512(values + i * wide + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    for (int64_t h = kh * t->groups; h < (kh + 1) * t->groups; h++)
        for (int64_t row = 0; row < t->queries; row += TILE) {
            const int64_t count = t->queries - row < TILE ? t->queries - row : TILE;
            const int64_t seen = reach(t, b, h, row, count), near = (seen + 31) / 32 * 32;
            const char *q = (const char *)t->q + (b * t->q_batch + h * t->q_head) * element;
            for (int64_t r = 0; r < TILE; r++)
                for (int64_t c = 0; c < wide; c += 16) {
                    if (pairs && c < wide / 2) {
                        const uint16_t *at = (const uint16_t *)q + (row + r) * t->q_row + 2 * c;
                        _mm512_store_si512(query + r * wide + c, r < count ? _mm512_maskz_loadu_epi32(first(steps - c), at) : _mm512_setzero_si512());
                    } else if (!pairs)
                        _mm512_store_ps(query + r * wide + c, r < count ? get(q, (row + r) * t->q_row + c, t->bf16, first(d - c)) : K(0.0f));
                }
            float inverse[TILE];
            if (pairs) multiply_bf16(query, wide, kt, padded, near, steps, scores, padded);
            else multiply_f32(query, wide, kt, padded, near, steps, scores, padded);
            for (int64_t r = 0; r < count; r++)
                inverse[r] = pairs ? soften(t, scores + r * padded, soft + r * padded, 1, b, h, row + r, seen, near)
                                   : soften(t, scores + r * padded, scores + r * padded, 0, b, h, row + r, seen, near);
            if (pairs) multiply_bf16(soft, padded, values, wide, wide, (seen + 1) / 2, out, wide);
            else multiply_f32(scores, padded, values, wide, wide, seen, out, wide);
            for (int64_t r = 0; r < count; r++)
                for (int64_t c = 0; c < d; c += 16)
                    put(t->y, ((b * t->queries + row + r) * t->heads + h) * d + c, t->bf16, first(d - c),
                        _mm512_mul_ps(_mm512_load_ps(out + r * wide + c), K(inverse[r])));
        }
}
/* One query row of one head, as in decoding: keys and values are read once, where they lie. */
static void attend_row(const Attention *t, int64_t b, int64_t h, int64_t row) {
    const int64_t d = t->width, wide = (d + 63) / 64 * 64, keys = reach(t, b, h, row, 1), padded = (keys + 15) / 16 * 16;
    const size_t element = t->bf16 ? 2 : 4;
    float *query = scratch(sizeof(float) * (wide + padded)), *scores = query + wide;
    const char *q = (const char *)t->q + (b * t->q_batch + h * t->q_head + row * t->q_row) * element;
    const char *k = (const char *)t->k + (b * t->k_batch + h / t->groups * t->k_head) * element;
    const char *v = (const char *)t->v + (b * t->v_batch + h / t->groups * t->v_head) * element;
    for (int64_t c = 0; c < wide; c += 16) _mm512_store_ps(query + c, get(q, c, t->bf16, first(d - c)));
    for (int64_t i = 0; i < keys; i++) {
        __m512 sum = K(0.0f);
        for (int64_t c = 0; c < d; c += 16)
            sum = _mm512_fmadd_ps(_mm512_load_ps(query + c), get(k, i * t->k_row + c, t->bf16, first(d - c)), sum);
        scores[i] = _mm512_reduce_add_ps(sum);
    }
    const __m512 inverse = K(soften(t, scores, scores, 0, b, h, row, keys, padded));
    for (int64_t c = 0; c < d; c += 64) {
        __m512 sums[4] = {K(0.0f), K(0.0f), K(0.0f), K(0.0f)};
        for (int64_t i = 0; i < keys; i++)
            for (int j = 0; j < 4; j++)
                sums[j] = _mm512_fmadd_ps(K(scores[i]), get(v, i * t->v_row + c + 16 * j, t->bf16, first(d - c - 16 * j)), sums[j]);
        for (int j = 0; j < 4; j++)
            put(t->y, ((b * t->queries + row) * t->heads + h) * d + c + 16 * j, t->bf16, first(d - c - 16 * j), _mm512_mul_ps(sums[j], inverse));
    }
}
void attention(const Attention *t, int threads) {
    const int64_t heads = t->heads / t->groups;
    if (t->queries == 1) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && t->batch * t->heads * t->keys > 4096)
        for (int64_t i = 0; i < t->batch * t->heads; i++) attend_row(t, i / t->heads, i % t->heads, 0);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && t->batch * t->heads * t->queries * t->keys > 4096)
    for (int64_t i = 0; i < t->batch * heads; i++) {
        fetch_heads(t, (i + 1) / heads, (i + 1) % heads);
        attend(t, i / heads, i % heads);
    }
}

/* A step of decoding: queries are rotated, keys rotated into the cache, values copied there, and then it is attended to. */
typedef struct { Rotary q, k, v; Attention attend; } Cached;
void cached_attention(const Cached *t, int threads) {
    rotary(&t->q, threads);
    rotary(&t->k, threads);
    rotary(&t->v, threads);
    attention(&t->attend, threads);
}

#else
int has_vnni(void) { return 0; }
#endif

/* Elements in memory and in registers, and functions of one vector. */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
enum { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_SILU, ACT_RELU, ACT_SWIGLU };

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
/* 32 bfloat16. */
INLINE __m512i pair_of(__m512 low, __m512 high) {
#ifdef __AVX512BF16__
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
#endif
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
INLINE __m512 exp2_(__m512 t, int coarse) { /* minimax on the fraction of t: relative error 7e-8; coarse, for a bfloat16: 7e-5 */
    const __m512 f = _mm512_reduce_ps(t, 9); /* t - floor(t); 0 of -infinity, of which scalef makes 0 */
    __m512 p = coarse ? K(7.802452307e-2f) : _mm512_fmadd_ps(K(1.87757668e-3f), f, K(8.989340283e-3f));
    if (!coarse) p = _mm512_fmadd_ps(p, f, K(5.582631767e-2f));
    p = _mm512_fmadd_ps(p, f, K(coarse ? 2.260671678e-1f : 2.401536173e-1f));
    p = _mm512_fmadd_ps(p, f, K(coarse ? 6.958335289e-1f : 6.931530731e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, K(coarse ? 9.999252205e-1f : 9.999999251e-1f)), t);
}
INLINE __m512 sigmoid(__m512 x, int coarse) { /* coarse, for a bfloat16: relative error 1e-4 */
    if (coarse) return _mm512_rcp14_ps(_mm512_add_ps(K(1.0f), exp2_(_mm512_mul_ps(x, K(-1.44269504f)), 1)));
    return _mm512_div_ps(K(1.0f), _mm512_add_ps(K(1.0f), exp_(_mm512_sub_ps(K(0.0f), x))));
}
INLINE __m512 coarse_gelu(__m512 x) { /* for a bfloat16: max(x, -4.4) · (1/2 + z P(z²)), z within ±4.4; absolute error 5e-5 */
    const __m512 z = _mm512_range_ps(x, K(4.4f), 2), w = _mm512_mul_ps(z, z);
    __m512 p = _mm512_fmadd_ps(K(3.188184785618553e-11f), w, K(-3.4141547367028124e-09f));
    p = _mm512_fmadd_ps(p, w, K(1.6142341507929814e-07f));
    p = _mm512_fmadd_ps(p, w, K(-4.469753548619337e-06f));
    p = _mm512_fmadd_ps(p, w, K(8.128809713525698e-05f));
    p = _mm512_fmadd_ps(p, w, K(-1.0341590968891978e-03f));
    p = _mm512_fmadd_ps(p, w, K(9.562063030898571e-03f));
    p = _mm512_fmadd_ps(p, w, K(-6.592165678739548e-02f));
    p = _mm512_fmadd_ps(p, w, K(3.9865854382514954e-01f));
    return _mm512_mul_ps(_mm512_max_ps(K(-4.4f), x), _mm512_fmadd_ps(z, p, K(0.5f)));
}
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
INLINE __m512 gelu_tanh(__m512 x, int coarse) { /* x / (1 + exp(-2 · 0.79788456 (x + 0.044715 x³))) */
    __m512 inner = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), K(0.044715f), K(1.0f)));
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(inner, K(1.59576912f)), coarse));
}
INLINE __m512 activate(__m512 x, int act, int coarse) { /* coarse: what a bfloat16 can tell */
    switch (act) {
        case ACT_GELU: return coarse ? coarse_gelu(x) : gelu(x);
        case ACT_GELU_TANH: return gelu_tanh(x, coarse);
        case ACT_SILU: return _mm512_mul_ps(x, sigmoid(x, coarse));
        case ACT_RELU: return _mm512_max_ps(x, K(0.0f));
        default: return x;
    }
}

/* ---- memory that a thread keeps for its next call ---- */

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

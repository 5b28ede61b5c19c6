/* Attention, of many queries and of one, and with a cache. */
#pragma once
#include "amx.h"
#include "rows.h"

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

/* Softmax of one row of scores, left unnormalised, `to` floats or (half) bfloat16; returns 1 / sum. Past the keys seen: zeros.
 * `s` and `to` have room for whole pairs of vectors. A row without any key gives zeros, as torch does. */
INLINE __m512 weights_of(const float *s, int64_t i, int64_t seen, __m512 factor, __m512 least, int half) {
    const __m512 e = exp2_(_mm512_fmadd_ps(_mm512_load_ps(s + i), factor, least), half);
    return i + 16 <= seen ? e : _mm512_maskz_mov_ps(first(seen - i), e);
}
INLINE float soften(const Attention *t, float *s, void *to, int half, int64_t b, int64_t h, int64_t row, int64_t keys, int64_t padded) {
    const int64_t seen = t->causal && row + 1 < keys ? row + 1 : keys;
    const int scaled = t->mask || t->scale < 0.0f; /* masks are of scaled scores, and so is the largest of them */
    const float log2e = 1.44269504f, scale = scaled ? 1.0f : t->scale;
    __m512 top = K(-INFINITY), next = top;
    int64_t i = 0;
    if (scaled)
        for (; i < seen; i += 16) {
            const __mmask16 in = first(seen - i);
            __m512 x = _mm512_mul_ps(_mm512_load_ps(s + i), K(t->scale));
            if (t->mask) x = masked(t, x, b, h, row, i, in);
            _mm512_store_ps(s + i, x);
            top = _mm512_mask_max_ps(top, in, top, x);
        }
    for (; i + 32 <= seen; i += 32) {
        top = _mm512_max_ps(top, _mm512_load_ps(s + i));
        next = _mm512_max_ps(next, _mm512_load_ps(s + i + 16));
    }
    for (; i < seen; i += 16) top = _mm512_mask_max_ps(top, first(seen - i), top, _mm512_load_ps(s + i));
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(top, next)) * scale;
    if (most == -INFINITY) {
        memset(to, 0, padded * (half ? 2 : sizeof(float)));
        return 0.0f;
    }
    const __m512 factor = K(scale * log2e), least = K(-most * log2e);
    __m512 sum = K(0.0f), more = sum;
    for (i = 0; i < seen; i += half ? 32 : 16) {
        const __m512 low = weights_of(s, i, seen, factor, least, half);
        sum = _mm512_add_ps(sum, low);
        if (half) {
            const __m512 high = weights_of(s, i + 16, seen, factor, least, half);
            more = _mm512_add_ps(more, high);
            _mm512_storeu_si512((uint16_t *)to + i, pair_of(low, high));
        } else _mm512_store_ps((float *)to + i, low);
    }
    for (; i < padded; i += 16)
        if (half) _mm256_store_si256((__m256i *)((uint16_t *)to + i), _mm256_setzero_si256());
        else _mm512_store_ps((float *)to + i, K(0.0f));
    return 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum, more));
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
    for (int i = 0; i < 16 && i < steps; i++) _mm512_storeu_si512(y + i * ldy, t[i]);
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
 * make a step; otherwise both are widened. Keys are laid down transposed. Steps are padded with zeros to what a product takes. */
static void attend(const Attention *t, int64_t b, int64_t kh) {
    const int pairs = PAIRS && t->bf16 && t->width % 2 == 0;
    const Product by = !pairs ? by_f32 : amx ? by_tiles : by_pairs;
    const int64_t d = t->width, wide = (d + 31) / 32 * 32, keys = t->keys, padded = (keys + 31) / 32 * 32;
    const int64_t steps = pairs ? d / 2 : d, key_steps = pairs ? (keys + 1) / 2 : keys;
    const int64_t all_steps = (steps + by.steps - 1) / by.steps * by.steps, all_keys = (key_steps + by.steps - 1) / by.steps * by.steps;
    const size_t element = t->bf16 ? 2 : 4;
    float *kt = scratch(sizeof(float) * ((d + 32) * padded + (all_keys + 1) * wide + by.rows * (2 * padded + 2 * wide) + 16 * wide));
    float *values = kt + (d + 32) * padded, *scores = values + (all_keys + 1) * wide, *soft = scores + by.rows * padded;
    float *query = soft + by.rows * padded, *out = query + by.rows * wide, *line = out + by.rows * wide;
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
    memset(kt + steps * padded, 0, sizeof(float) * (all_steps - steps) * padded);
    memset(values + key_steps * wide, 0, sizeof(float) * (all_keys - key_steps) * wide);
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
    if (amx) begin_tiles(TILE_ROWS);
    for (int64_t h = kh * t->groups; h < (kh + 1) * t->groups; h++)
        for (int64_t row = 0; row < t->queries; row += by.rows) {
            const int64_t count = t->queries - row < by.rows ? t->queries - row : by.rows;
            const int64_t seen = reach(t, b, h, row, count), near = (seen + 31) / 32 * 32, near_steps = pairs ? (seen + 1) / 2 : seen;
            const char *q = (const char *)t->q + (b * t->q_batch + h * t->q_head) * element;
            for (int64_t r = 0; r < by.rows; r++)
                for (int64_t c = 0; c < wide; c += 16) {
                    if (pairs && c < wide / 2) {
                        const uint16_t *at = (const uint16_t *)q + (row + r) * t->q_row + 2 * c;
                        _mm512_store_si512(query + r * wide + c, r < count ? _mm512_maskz_loadu_epi32(first(steps - c), at) : _mm512_setzero_si512());
                    } else if (!pairs)
                        _mm512_store_ps(query + r * wide + c, r < count ? get(q, (row + r) * t->q_row + c, t->bf16, first(d - c)) : K(0.0f));
                }
            float inverse[TILE_ROWS];
            by.run(query, wide, kt, padded, near, all_steps, scores, padded);
            for (int64_t r = 0; r < count; r++)
                inverse[r] = pairs ? soften(t, scores + r * padded, soft + r * padded, 1, b, h, row + r, seen, near)
                                   : soften(t, scores + r * padded, scores + r * padded, 0, b, h, row + r, seen, near);
            by.run(pairs ? soft : scores, padded, values, wide, wide, (near_steps + by.steps - 1) / by.steps * by.steps, out, wide);
            for (int64_t r = 0; r < count; r++)
                for (int64_t c = 0; c < d; c += 16)
                    put(t->y, ((b * t->queries + row + r) * t->heads + h) * d + c, t->bf16, first(d - c),
                        _mm512_mul_ps(_mm512_load_ps(out + r * wide + c), K(inverse[r])));
        }
    if (amx) end_tiles();
}
/* The scores of one query row a head, scores[head, key], rows `padded` apart: keys are read once, where they lie. With tiles 16 keys
 * meet the queries of all heads that share them, at most 16. */
static void score_tiles(const Attention *t, const char *q, const char *k, const char *v, int64_t keys, float *scores, int64_t padded, float *turned) {
    float block[TILE_ROWS * 16] __attribute__((aligned(64)));
    const int64_t steps = t->width / 2;
    memset(turned, 0, sizeof(float) * 16 * steps);
    for (int64_t h = 0; h < t->groups; h++)
        for (int64_t s = 0; s < steps; s++) memcpy(turned + 16 * s + h, q + (h * t->q_head + 2 * s) * 2, 4);
    begin_tiles(TILE_ROWS);
    for (int64_t i = 0; i < keys; i += TILE_ROWS) {
        const int64_t at = i + TILE_ROWS <= keys ? i : keys - TILE_ROWS; /* the last ones early rather than past the end */
        const int64_t next = i + 4 * TILE_ROWS < keys ? TILE_ROWS : 0; /* tiles wait for memory row by row */
        fetch_head(k, (i + 3 * TILE_ROWS) * t->k_row, next, t->k_row, t->width, 2);
        fetch_head(v, i * t->v_row, i + TILE_ROWS <= keys ? TILE_ROWS : keys - i, t->v_row, t->width, 2);
        tile_bf16(k + at * t->k_row * 2, t->k_row * 2, turned, steps / 16, block);
        transpose16((const char *)block, 64, TILE_ROWS, t->groups, scores + at, padded);
    }
    end_tiles();
}
static void score_rows(const Attention *t, const char *q, const char *k, int64_t keys, float *scores, int64_t padded, float *query) {
    const int64_t d = t->width;
    for (int64_t h = 0; h < t->groups; h++) {
        for (int64_t c = 0; c < d; c += 16) _mm512_store_ps(query + c, get(q, h * t->q_head + c, t->bf16, first(d - c)));
        for (int64_t i = 0; i < keys; i++) {
            __m512 sum = K(0.0f);
            for (int64_t c = 0; c < d; c += 16)
                sum = _mm512_fmadd_ps(_mm512_load_ps(query + c), get(k, i * t->k_row + c, t->bf16, first(d - c)), sum);
            scores[h * padded + i] = _mm512_reduce_add_ps(sum);
        }
    }
}
/* y = Σ weight of a key · its value, of `heads` heads and the columns c … c + 64: values are read once for all of them. */
INLINE void weigh(const Attention *t, const void *v, const float *weights, int64_t padded, const float *inverse, int64_t keys, int64_t y,
                  int64_t c, int heads, int bf16, int whole) {
    const int64_t d = t->width;
    __m512 sums[3][4];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < 4; j++) sums[h][j] = K(0.0f);
    for (int64_t i = 0; i < keys; i++)
        for (int j = 0; j < 4; j++) {
            const __m512 value = get(v, i * t->v_row + c + 16 * j, bf16, whole ? 0xffff : first(d - c - 16 * j));
            for (int h = 0; h < heads; h++) sums[h][j] = _mm512_fmadd_ps(K(weights[h * padded + i]), value, sums[h][j]);
        }
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < 4; j++) {
            const __mmask16 k = first(d - c - 16 * j);
            if (k) put(t->y, y + h * d + c + 16 * j, bf16, k, _mm512_mul_ps(sums[h][j], K(inverse[h])));
        }
}
/* One query row, as in decoding, of all heads that share a key head. */
static void attend_row(const Attention *t, int64_t b, int64_t kh) {
    const int64_t d = t->width, wide = (d + 63) / 64 * 64, groups = t->groups, h0 = kh * groups;
    const size_t element = t->bf16 ? 2 : 4;
    int64_t keys = 0;
    for (int64_t h = h0; h < h0 + (t->m_head ? groups : 1); h++) {
        const int64_t own = reach(t, b, h, 0, 1);
        keys = own > keys ? own : keys;
    }
    const int64_t padded = (keys + 31) / 16 * 16;
    float *query = scratch(sizeof(float) * (8 * wide + groups * (padded + 1) + 16)), *scores = query + 8 * wide;
    float *inverse = scores + groups * padded;
    const char *q = (const char *)t->q + (b * t->q_batch + h0 * t->q_head) * element;
    const char *k = (const char *)t->k + (b * t->k_batch + kh * t->k_head) * element;
    const char *v = (const char *)t->v + (b * t->v_batch + kh * t->v_head) * element;
    if (amx && t->bf16 && d % 32 == 0 && keys >= TILE_ROWS && groups <= 16) score_tiles(t, q, k, v, keys, scores, padded, query);
    else score_rows(t, q, k, keys, scores, padded, query);
    for (int64_t h = 0; h < groups; h++)
        inverse[h] = soften(t, scores + h * padded, scores + h * padded, 0, b, h0 + h, 0, keys, padded);
    for (int64_t c = 0; c < d; c += 64)
        for (int64_t h = 0; h < groups; h += 3) {
            const float *weights = scores + h * padded;
            const int64_t y = (b * t->heads + h0 + h) * d;
            const int heads = groups - h < 3 ? groups - h : 3;
#define WEIGH(N) (t->bf16 && c + 64 <= d ? weigh(t, v, weights, padded, inverse + h, keys, y, c, N, 1, 1)                       \
                  : t->bf16      ? weigh(t, v, weights, padded, inverse + h, keys, y, c, N, 1, 0)                               \
                                 : weigh(t, v, weights, padded, inverse + h, keys, y, c, N, 0, 0))
            if (heads == 3) WEIGH(3);
            else if (heads == 2) WEIGH(2);
            else WEIGH(1);
        }
}
void attention(const Attention *t, int threads) {
    const int64_t heads = t->heads / t->groups;
    if (t->queries == 1) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && t->batch * t->heads * t->keys > 4096)
        for (int64_t i = 0; i < t->batch * heads; i++) attend_row(t, i / heads, i % heads);
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


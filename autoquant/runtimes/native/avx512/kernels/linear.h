/* Linear layers: codes, products and outputs of chunks of rows, and two layers at once. */
#pragma once
#include "amx.h"

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
static size_t bytes_of_expanded(const Linear *l) { return ((l->inputs + 3) / 4 * 2 + TILE_ROWS) * PANEL * sizeof(float); }

/* All panels of `rows` rows of bfloat16, at least TILE of them: the last tile begins early rather than end early. */
static void product_expanded(const Out *o, const uint16_t *x, int64_t rows, int64_t row, float *panel) {
    const Linear *l = o->l;
    const int64_t pairs = l->inputs / 2;
    float *out = panel + (l->inputs + 3) / 4 * 2 * PANEL;
    const Product by = amx && rows >= by_tiles.rows && pairs % by_tiles.steps == 0 ? by_tiles : by_pairs;
    if (amx) begin_tiles(TILE_ROWS);
    for (int64_t p = 0; p * PANEL < l->outputs; p++) {
        expand_panel(l, p, panel);
        for (int64_t at = 0; at < rows; at += by.rows) {
            const int64_t r = at + by.rows <= rows ? at : rows - by.rows;
            by.run((const float *)(x + r * l->inputs), pairs, panel, PANEL, PANEL, pairs, out, PANEL);
            for (int64_t i = 0; i < by.rows; i++)
                for (int64_t c = 0; c < PANEL; c += 16)
                    store(o, row + r + i, p * PANEL + c, l->outputs,
                          activate(finish(l, _mm512_load_ps(out + i * PANEL + c), p * PANEL + c, K(1.0f)), l->act, 1));
        }
    }
    if (amx) end_tiles();
}

/* The same as `product` with tiles. */
static void product_amx(const Out *o, const Rows *x, int64_t rows, int64_t row, int64_t p0, int64_t p1) {
    const Linear *l = o->l;
    const int64_t quads = quads_of(l), parts = parts_of(l), steps = (l->inputs + 63) / 64, main = round64(l->inputs);
    Finish *const end = finishes[l->act][o->bf16][parts > 1][l->zero != 0];
    Block sums[DIGITS] __attribute__((aligned(64)));
    begin_tiles(rows);
    for (int64_t c = p0 * PANEL; c < p1 * PANEL && c < l->outputs; c += BLOCK) {
        const uint8_t *b = l->weight + c / PANEL * quads * 256 + c % PANEL * 4;
        for (int64_t r = 0; r < rows; r += TILE_ROWS) {
            const int64_t count = rows - r < TILE_ROWS ? rows - r : TILE_ROWS, stride = x->stride * parts;
            const int8_t *a = x->codes + r * stride;
            for (int64_t d = 0; d < parts; d++)
                tiles_int8(a + d * x->stride, stride, 64, b + l->wides * 64, 256, 4096, steps, sums[d], BLOCK);
            if (l->wides) tiles_int8(a + main, stride, 64, b, 256, 4096, 1, sums[1], BLOCK);
            end(o, (const Block *)sums, r, row + r, count, c);
        }
    }
    end_tiles();
    if (o->streamed) _mm_sfence();
}
enum { LEAST_TILED = 3 }; /* rows: of fewer, reading the weight is all that there is to do */
/* Panels p0 … p1 of `rows` rows, whose first is number `row` in y. */
static void product(const Out *o, const Rows *x, int64_t rows, int64_t row, int64_t p0, int64_t p1) {
    if (amx && rows >= LEAST_TILED) {
        product_amx(o, x, rows, row, p0, p1);
        return;
    }
    const int64_t quads = quads_of(o->l), parts = parts_of(o->l), most = TILE / parts;
    Tile *const *of = parts == 1 ? tiles : digits;
    for (int64_t p = p0; p < p1; p++)
        for (int64_t r = 0; r < rows; r += most)
            of[rows - r < most ? rows - r : most](o, x->codes + r * parts * x->stride, x->stride, o->l->weight + p * quads * 256,
                                                  (o->l->inputs + 3) / 4 * 4, r, row + r, p * PANEL);
}

/* y = silu(gate) · up of `rows` rows of (gate | up), each `n` wide. */
static void gate(const void *both, void *y, int64_t rows, int64_t row, int64_t n, int bf16) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 k = first(n - i);
            const __m512 g = activate(get(both, 2 * r * n + i, bf16, k), ACT_SILU, bf16);
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
    Out o = {l, 0, 0, residual, gated ? memory + own : y, bf16, !gated && rows * l->outputs * 2 >= STREAMED};
    if (wide) product_expanded(&o, (const uint16_t *)x + x_row * l->inputs, count, gated ? 0 : y_row, (float *)memory);
    else {
        const Rows mine = make_rows(l, count, memory);
        quantize_rows_(l, x, bf16, x_row, 0, count, common, &mine);
        o.scales = mine.scales, o.starts = mine.starts;
        product(&o, &mine, count, gated ? 0 : y_row, 0, (l->outputs + PANEL - 1) / PANEL);
    }
    if (gated) gate(memory + own, y, count, y_row, l->outputs / 2, bf16);
}
/* With tiles the weight's way from memory is soon longer than the product itself: large weights get more rows at once. */
static int64_t rows_at_once(const Linear *l) {
    return (amx && l->inputs * l->outputs > 1 << 20 ? 256 : 96) / parts_of(l);
}
/* Rows of a chunk so that each thread gets the same number of chunks of at most `most`. */
static int64_t step_of(int64_t rows, int64_t most, int threads) {
    const int64_t chunks = ((rows + most - 1) / most + threads - 1) / threads * threads;
    const int64_t whole = amx ? TILE_ROWS : TILE;
    return ((rows + chunks - 1) / chunks + whole - 1) / whole * whole;
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
        const int64_t step = step_of(rows, expands(l, rows, bf16) ? EXPANDED_ROWS : rows_at_once(l), threads);
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
    const Out o = {l, all.scales, all.starts, residual, gated ? memory + own : y, bf16, 0};
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
    const int64_t step = step_of(rows, wide ? EXPANDED_ROWS : rows_at_once(first), threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row += step) {
        const int64_t count = rows - row < step ? rows - row : step;
        const size_t a = bytes_of_chunk(first, count, rows, bf16), b = bytes_of_chunk(second, count, rows, bf16);
        char *memory = scratch((a > b ? a : b) + count * second->inputs * (bf16 ? 2 : 4)), *inner = memory + (a > b ? a : b);
        chunk(first, x, 0, inner, row, 0, count, rows, first->input_scale, bf16, memory);
        chunk(second, inner, residual, y, 0, row, count, rows, second->input_scale, bf16, memory);
    }
}


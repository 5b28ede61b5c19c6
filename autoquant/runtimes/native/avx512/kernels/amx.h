/* Products with AMX: tiles of 16 rows of 64 bytes. A tile of the left matrix (16 rows) meets two of the right one (32 columns), one
 * after the other. Four of the eight tiles are used: where two threads share a core each has hardly more registers than that behind
 * the names, and the usual two by two tiles of sums take twice the time then. The right matrix lies as everywhere here: for four
 * bytes of a row of the left one, four bytes of each column side by side; tiles are read where they are. Without AMX `amx` is 0. */
#pragma once
#include "products.h"

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

static int amx;
/* Whether tiles are used from now on: Linux gives a process their registers (component 18 of its state) on request. */
int use_amx(int wanted) { return amx = wanted && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }

/* Tiles of this thread from now on: 0 and 1 of sums, 2 of the left matrix, 3 of the right one. Of fewer than 16 rows the left one has
 * so many, and takes less time. To be followed by `end_tiles`. */
INLINE void begin_tiles(int64_t rows) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((aligned(64))) c = {.palette = 1};
    for (int i = 0; i < 4; i++) c.bytes[i] = 64, c.rows[i] = i == 3 || rows > TILE_ROWS ? TILE_ROWS : rows;
    __asm__ volatile("ldtilecfg %0" ::"m"(c));
}
INLINE void end_tiles(void) { _tile_release(); }

/* to (16, 32) = left · right of `steps` tiles, which are `left_step` and `right_step` bytes apart; their rows `lda` and `ldb`. */
#define TILES(NAME, DOT_TILES, INTO)                                                                                           \
    INLINE void NAME(const void *left, int64_t lda, int64_t left_step, const void *right, int64_t ldb, int64_t right_step,     \
                     int64_t steps, INTO *to, int64_t ldt) {                                                                   \
        const char *a = left, *b = right;                                                                                      \
        __asm__ volatile("" ::: "memory"); /* tile loads do not say that they read */                                          \
        _tile_zero(0);                                                                                                         \
        _tile_zero(1);                                                                                                         \
        for (int64_t s = 0; s < steps; s++, a += left_step, b += right_step) {                                                 \
            _tile_loadd(2, a, lda);                                                                                            \
            _tile_loadd(3, b, ldb);                                                                                            \
            DOT_TILES(0, 2, 3);                                                                                                \
            _tile_loadd(3, b + 64, ldb);                                                                                       \
            DOT_TILES(1, 2, 3);                                                                                                \
        }                                                                                                                      \
        _tile_stored(0, to, ldt * 4);                                                                                          \
        _tile_stored(1, to + 16, ldt * 4);                                                                                     \
    }
TILES(tiles_int8, _tile_dpbsud, int32_t)
TILES(tiles_bf16, _tile_dpbf16ps, float)

/* to (16, 16) = left · right of `steps` tiles; those of the left one lie side by side, those of the right one one after the other. */
INLINE void tile_bf16(const void *left, int64_t lda, const void *right, int64_t steps, float *to) {
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    for (int64_t s = 0; s < steps; s++) {
        _tile_loadd(2, (const char *)left + 64 * s, lda);
        _tile_loadd(3, (const char *)right + 1024 * s, 64);
        _tile_dpbf16ps(0, 2, 3);
    }
    _tile_stored(0, to, 64);
}

/* As `multiply_bf16`, of 16 rows; n is a multiple of 16. Between `begin_tiles(16)` and `end_tiles`. */
static void multiply_amx(const float *left, int64_t stride, const float *right, int64_t ldb, int64_t columns, int64_t n, float *out,
                         int64_t ldy) {
    for (int64_t c = 0; c < columns; c += BLOCK)
        tiles_bf16(left, 4 * stride, 64, right + c, 4 * ldb, 64 * ldb, n / 16, out + c, ldy);
}

#else
enum { amx = 0 };
int use_amx(int wanted) { return 0; }
INLINE void begin_tiles(int64_t rows) { (void)rows; }
INLINE void end_tiles(void) {}
#define multiply_amx multiply_bf16
INLINE void tiles_int8(const void *left, int64_t lda, int64_t left_step, const void *right, int64_t ldb, int64_t right_step, int64_t steps,
                       int32_t *to, int64_t ldt) {}
INLINE void tile_bf16(const void *left, int64_t lda, const void *right, int64_t steps, float *to) {}
#endif
int uses_amx(void) { return amx; }

/* A product of pairs of bfloat16: it takes `rows` at once, and a multiple of `steps` pairs. */
typedef void Multiply(const float *, int64_t, const float *, int64_t, int64_t, int64_t, float *, int64_t);
typedef struct { Multiply *run; int64_t rows, steps; } Product;
static const Product by_f32 = {multiply_f32, TILE, 1}, by_pairs = {multiply_bf16, TILE, 1}, by_tiles = {multiply_amx, TILE_ROWS, 16};

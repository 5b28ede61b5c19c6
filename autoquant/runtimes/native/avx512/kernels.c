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
 * the residual and rounded once, on its way to memory. AMX reads the same panels, 16 × 32 sums at a time (amx.h).
 *
 *     vectors.h ── codes.h ── outputs.h ── products.h ── amx.h ── linear.h
 *              └── rows.h ─────────────────────────────────────── attention.h */

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/rows.h"

int has_vnni(void) { return 1; }
#else
int has_vnni(void) { return 0; }
int use_amx(int wanted) { return 0; }
int uses_amx(void) { return 0; }
#endif

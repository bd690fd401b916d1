/* bfloat16: the upper half of a float. */
#include <stdint.h>

typedef uint16_t bfloat16;

static inline float widened(bfloat16 half) {
  union { uint32_t bits; float number; } as = {(uint32_t)half << 16};
  return as.number;
}

static inline bfloat16 rounded(float number) { /* to the nearest, ties to even */
  union { float number; uint32_t bits; } as = {number};
  return (bfloat16)((as.bits + 0x7fff + (as.bits >> 16 & 1)) >> 16);
}

/* One step of Adam or AdamW (Kingma and Ba, 2015; Loshchilov and Hutter, 2019) for weights whose gradients are in bfloat16; see cpu_optimizer.py. */
#include <math.h>
#include <omp.h>

#include "bfloat16.h"

enum { CHUNK = 4096, LINE = 64 }; /* values: of a float sum; of the finest division among threads */

typedef struct {
  float *weight, *average, *square; /* of the gradient */
  const bfloat16 *gradient;
  bfloat16 *rounded; /* the weight, anew, in bfloat16 */
  long size;
  /* decay: what decoupled weight decay takes of a weight; l2: the coupled one; new1, new2: 1 - beta1, 1 - beta2 */
  float decay, l2, new1, beta2, new2, rate, correction, epsilon;
} Tensor;

/* sums: `most` zeros, for at most so many threads; each leaves there what it adds up of the squares of all gradients. */
void adam(const Tensor *tensors, long count, double *sums, int most) {
#pragma omp parallel num_threads(most)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    double total = 0;
    for (const Tensor *each = tensors; each < tensors + count; each++) {
      const Tensor t = *each;
      float *restrict weight = t.weight, *restrict average = t.average, *restrict square = t.square;
      const bfloat16 *restrict gradient = t.gradient;
      bfloat16 *restrict out = t.rounded;
      long share = (t.size / threads / LINE + 1) * LINE, first = share * thread, last = first + share < t.size ? first + share : t.size;
      for (long from = first; from < last; from += CHUNK) {
        long to = from + CHUNK < last ? from + CHUNK : last;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = from; i < to; i++) {
          float g = widened(gradient[i]), w = weight[i];
          sum += g * g;
          g += t.l2 * w;
          average[i] += t.new1 * (g - average[i]);
          square[i] = t.beta2 * square[i] + t.new2 * g * g;
          w -= t.decay * w + t.rate * average[i] / (sqrtf(square[i]) * t.correction + t.epsilon); /* 1 - decay would be 1 in float */
          weight[i] = w;
          out[i] = rounded(w);
        }
        total += sum;
      }
    }
    sums[thread] = total;
  }
}

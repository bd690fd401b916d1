/* Batch normalisation, the sum with a residual and ReLU, forward and backward, for (rows, channels) in memory; see batchnorm.py.

   Compiled twice: for float, and with -DBF16 for bfloat16. All arithmetic is in float, sums over more than CHUNK rows in double.
   Threads take equal shares of the rows, so the same number of threads gives the same bits. Every function returns 0, or 1 where there
   is no memory left. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef BF16
#include "bfloat16.h"
typedef bfloat16 value;
static inline float get(value v) { return widened(v); }
static inline value put(float number) { return rounded(number); }
#else
typedef float value;
static inline float get(value v) { return v; }
static inline value put(float number) { return number; }
#endif

enum { CHUNK = 256 };

typedef struct { long from, to; } Share;

static Share share_of_thread(long rows) {
  long each = (rows + omp_get_num_threads() - 1) / omp_get_num_threads(), from = each * omp_get_thread_num();
  Share share = {from < rows ? from : rows, from + each < rows ? from + each : rows};
  return share;
}

/* What a thread adds up over its rows, two sums a channel: in double, by way of a float sum over each chunk. */
typedef struct { double *total; float *chunk; int threads; long channels; } Sums;

static int begin_sums(Sums *sums, long channels) {
  sums->threads = omp_get_max_threads();
  sums->channels = channels;
  sums->total = calloc(2 * (size_t)channels * sums->threads, sizeof(double));
  sums->chunk = malloc(2 * (size_t)channels * sums->threads * sizeof(float));
  return sums->total && sums->chunk;
}

static float *begin_chunk(Sums *sums) {
  float *chunk = sums->chunk + 2 * sums->channels * omp_get_thread_num();
  return memset(chunk, 0, 2 * sums->channels * sizeof(float));
}

static void end_chunk(Sums *sums) {
  double *total = sums->total + 2 * sums->channels * omp_get_thread_num();
  const float *chunk = sums->chunk + 2 * sums->channels * omp_get_thread_num();
  for (long c = 0; c < 2 * sums->channels; c++) total[c] += chunk[c];
}

static double sum_of(const Sums *sums, int which, long channel) {
  double sum = 0;
  for (int thread = 0; thread < sums->threads; thread++) sum += sums->total[(2 * thread + which) * sums->channels + channel];
  return sum;
}

static void end_sums(Sums *sums) {
  free(sums->total);
  free(sums->chunk);
}

/* y = relu(x * scale + shift + residual), where scale and shift normalise each channel: kept for the backward pass.
   running_mean, running_variance: moved by momentum towards the batch's own. residual: null, or as x. relu: 0 leaves it out. */
int norm_forward(const value *x, const value *residual, const float *gamma, const float *beta, float *running_mean, float *running_variance,
                 float momentum, float epsilon, float *mean, float *deviation, float *scale, float *shift, value *y, int relu, long rows,
                 long channels) {
  Sums sums;
  if (!begin_sums(&sums, channels)) {
    end_sums(&sums);
    return 1;
  }
  for (long c = 0; c < channels; c++) mean[c] = get(x[c]); /* any of the values: sums of squares around it lose no digits */
#pragma omp parallel
  {
    Share share = share_of_thread(rows);
    for (long first = share.from; first < share.to; first += CHUNK) {
      long end = first + CHUNK < share.to ? first + CHUNK : share.to, row = first;
      float *restrict sum = begin_chunk(&sums), *restrict square = sum + channels;
      for (; row + 4 <= end; row += 4) {
        const value *restrict p = x + row * channels, *restrict q = p + channels, *restrict r = q + channels, *restrict s = r + channels;
        for (long c = 0; c < channels; c++) {
          float a = get(p[c]) - mean[c], b = get(q[c]) - mean[c], d = get(r[c]) - mean[c], e = get(s[c]) - mean[c];
          sum[c] += (a + b) + (d + e);
          square[c] += (a * a + b * b) + (d * d + e * e);
        }
      }
      for (; row < end; row++) {
        const value *restrict p = x + row * channels;
        for (long c = 0; c < channels; c++) {
          float a = get(p[c]) - mean[c];
          sum[c] += a;
          square[c] += a * a;
        }
      }
      end_chunk(&sums);
    }
  }
  for (long c = 0; c < channels; c++) {
    double off = sum_of(&sums, 0, c) / rows, variance = sum_of(&sums, 1, c) / rows - off * off;
    if (variance < 0) variance = 0;
    mean[c] += (float)off;
    deviation[c] = (float)sqrt(variance + epsilon);
    scale[c] = gamma[c] / deviation[c];
    shift[c] = beta[c] - mean[c] * scale[c];
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_variance[c] += momentum * ((float)(variance * rows / (rows - 1)) - running_variance[c]);
  }
  end_sums(&sums);
  const float least = relu ? 0 : -INFINITY;
#pragma omp parallel
  {
    Share share = share_of_thread(rows);
    for (long row = share.from; row < share.to; row++) {
      const value *restrict p = x + row * channels;
      value *restrict to = y + row * channels;
      if (residual) {
        const value *restrict beside = residual + row * channels;
        for (long c = 0; c < channels; c++) {
          float v = get(p[c]) * scale[c] + shift[c] + get(beside[c]);
          to[c] = put(v < least ? least : v); /* so that NaN stays NaN */
        }
      } else
        for (long c = 0; c < channels; c++) {
          float v = get(p[c]) * scale[c] + shift[c];
          to[c] = put(v < least ? least : v);
        }
    }
  }
  return 0;
}

/* The gradients of norm_forward. behind: of the residual, dy where y is positive; null where there was no residual, and then y is not read.
   dx: null where it is not wanted. */
int norm_backward(const value *dy, const value *x, const value *y, const float *mean, const float *deviation, const float *scale,
                  const float *shift, value *behind, value *dx, float *dgamma, float *dbeta, int relu, long rows, long channels) {
  Sums sums;
  float *slope = malloc(2 * channels * sizeof(float)), *offset = slope + channels;
  if (!begin_sums(&sums, channels) || !slope) {
    end_sums(&sums);
    free(slope);
    return 1;
  }
#pragma omp parallel
  {
    Share share = share_of_thread(rows);
    for (long first = share.from; first < share.to; first += CHUNK) {
      long end = first + CHUNK < share.to ? first + CHUNK : share.to;
      float *restrict sum = begin_chunk(&sums), *restrict product = sum + channels;
      for (long row = first; row < end; row++) {
        const value *restrict d = dy + row * channels, *restrict p = x + row * channels;
        if (behind) {
          const value *restrict q = y + row * channels;
          value *restrict to = behind + row * channels;
          for (long c = 0; c < channels; c++) {
            float g = relu && !(get(q[c]) > 0) ? 0 : get(d[c]);
            to[c] = put(g);
            sum[c] += g;
            product[c] += g * (get(p[c]) - mean[c]);
          }
        } else if (relu)
          for (long c = 0; c < channels; c++) {
            float v = get(p[c]), g = v * scale[c] + shift[c] > 0 ? get(d[c]) : 0;
            sum[c] += g;
            product[c] += g * (v - mean[c]);
          }
        else
          for (long c = 0; c < channels; c++) {
            float g = get(d[c]);
            sum[c] += g;
            product[c] += g * (get(p[c]) - mean[c]);
          }
      }
      end_chunk(&sums);
    }
  }
  for (long c = 0; c < channels; c++) { /* dx = scale * (g - mean of g - normalised x * mean of (g * normalised x)) */
    dbeta[c] = (float)sum_of(&sums, 0, c);
    dgamma[c] = (float)sum_of(&sums, 1, c) / deviation[c];
    slope[c] = scale[c] * dgamma[c] / deviation[c] / rows;
    offset[c] = scale[c] * dbeta[c] / rows - slope[c] * mean[c];
  }
  end_sums(&sums);
  const value *gradient = behind ? behind : dy;
  int masked = relu && !behind;
#pragma omp parallel
  {
    Share share = share_of_thread(dx ? rows : 0);
    for (long row = share.from; row < share.to; row++) {
      const value *restrict d = gradient + row * channels, *restrict p = x + row * channels;
      value *restrict to = dx + row * channels;
      if (masked)
        for (long c = 0; c < channels; c++) {
          float v = get(p[c]), g = v * scale[c] + shift[c] > 0 ? get(d[c]) : 0;
          to[c] = put(scale[c] * g - offset[c] - slope[c] * v);
        }
      else
        for (long c = 0; c < channels; c++) to[c] = put(scale[c] * get(d[c]) - offset[c] - slope[c] * get(p[c]));
    }
  }
  free(slope);
  return 0;
}

// Where things lie: all index arithmetic of the kernels, in 64 bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FUSUM_INLINE __host__ __device__ __forceinline__
#else
#define FUSUM_INLINE inline
#endif

namespace fusum {

// The first element of a point (or of a row), where each has so many elements.
FUSUM_INLINE int64_t offset_of(int64_t place, int64_t elements) { return place * elements; }

// The example that row of a call starting at start is a sample of.
FUSUM_INLINE int64_t example_of(int64_t row, int64_t start, int64_t samples) { return (start + row) / samples; }

// The rows [first, last) of a call of count rows that are samples of example.
struct Rows {
  int64_t first;
  int64_t last;
};

FUSUM_INLINE Rows rows_of(int64_t example, int64_t start, int64_t samples, int64_t count) {
  const int64_t first = example * samples - start;
  const int64_t last = first + samples;
  return {first < 0 ? 0 : first, last > count ? count : last};
}

// The baselines operand: a scalar (both steps 0), one row (row_step 0), a row each, or rows picked by index.
template <class T>
struct BaseRows {
  const T* data;
  const int64_t* index;
  int64_t row_step;
  int64_t element_step;
  int64_t count;  // rows of data

  FUSUM_INLINE const T* at(int64_t row, int64_t element) const {
    return data + offset_of(index ? index[row] : row, row_step) + element * element_step;
  }
};

// Where an operand that broadcasts to a dense result is read, for the result's elements in the order they lie in
// memory. The innermost dimension comes first; its step is 1, or 0 where the operand repeats.
struct Steps {
  static constexpr int kMost = 4;
  int dims;
  int64_t sizes[kMost];
  int64_t steps[kMost];

  FUSUM_INLINE int64_t at(int64_t element) const {
    int64_t place = 0;
    for (int dim = 0; dim < kMost; ++dim) {  // unrolled, so that a GPU keeps all of it in registers
      if (dim + 1 < dims) {
        place += element % sizes[dim] * steps[dim];
        element /= sizes[dim];
      } else if (dim + 1 == dims) {
        place += element * steps[dim];
      }
    }
    return place;
  }
};

template <class T>
struct Broadcast {
  const T* data;
  Steps steps;
};

}  // namespace fusum

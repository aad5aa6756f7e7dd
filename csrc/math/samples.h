// The formulas of noisy samples and their moments, on scalars of the accumulation type.
#pragma once

#include "math/index.h"

namespace fusum {

template <class A>
FUSUM_INLINE A noisy_copy(A input, A stdev, A noise) {
  return input + stdev * noise;
}

template <class A>
FUSUM_INLINE A first_moment(A total, A value) {
  return total + value;
}

template <class A>
FUSUM_INLINE A second_moment(A squares, A value) {
  return squares + value * value;
}

}  // namespace fusum

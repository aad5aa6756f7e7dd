// The formulas of a path from a baseline to an input, on scalars of the accumulation type.
#pragma once

#include "math/index.h"

namespace fusum {

template <class A>
FUSUM_INLINE A path_point(A base, A change, A alpha) {
  return base + alpha * change;
}

template <class A>
FUSUM_INLINE A path_sum(A total, A weight, A gradient) {
  return total + weight * gradient;
}

template <class A>
FUSUM_INLINE A times_change(A gradient, A input, A base) {
  return gradient * (input - base);
}

template <class A>
FUSUM_INLINE A random_point(A input, A base, A coefficient) {
  return coefficient * input + (A(1) - coefficient) * base;
}

}  // namespace fusum

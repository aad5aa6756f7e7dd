// The rescale rule of DeepLIFT (Shrikumar et al., 2017) for one elementwise operator, on scalars of the accumulation
// type.
#pragma once

#include <cmath>

#include "math/index.h"

namespace fusum {

// How close two numbers must be to count as equal: absolutely, or relative to the larger one.
template <class A>
struct Tolerance {
  A absolute;
  A relative;
};

// Equal infinities have no difference; NaN is near nothing.
template <class A>
FUSUM_INLINE bool near(A x, A x_ref, Tolerance<A> tolerance) {
  const A size = std::fabs(x) > std::fabs(x_ref) ? std::fabs(x) : std::fabs(x_ref);
  const A bound = tolerance.relative * size;
  return x == x_ref || std::fabs(x - x_ref) <= (bound > tolerance.absolute ? bound : tolerance.absolute);
}

template <class A>
FUSUM_INLINE A rescale(A gradient, A x, A x_ref, A y, A y_ref, A slope, Tolerance<A> tolerance) {
  const A quotient = (y - y_ref) / (x - x_ref);
  return gradient * (near(x, x_ref, tolerance) ? slope : quotient);
}

template <class A>
FUSUM_INLINE A rescale_relu(A gradient, A x, A x_ref, Tolerance<A> tolerance) {
  const A y = x < 0 ? A(0) : x;
  const A y_ref = x_ref < 0 ? A(0) : x_ref;
  return rescale(gradient, x, x_ref, y, y_ref, x > 0 ? A(1) : A(0), tolerance);
}

}  // namespace fusum

// From a tensor's dtype to the C++ types of a kernel.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace fusum {

// What a dtype is accumulated in.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls body with a value of the C++ type of dtype, which the operand checks have let through.
template <class Body>
void visit_total(at::ScalarType dtype, const Body& body) {
  if (dtype == at::kDouble) {
    body(double{});
  } else {
    body(float{});
  }
}

template <class Body>
void visit_float(at::ScalarType dtype, const Body& body) {
  if (dtype == at::kHalf) {
    body(at::Half{});
  } else if (dtype == at::kBFloat16) {
    body(at::BFloat16{});
  } else {
    visit_total(dtype, body);
  }
}

// Like visit_float, with a second operand that is of the same dtype or float32.
template <class Body>
void visit_pair(at::ScalarType dtype, at::ScalarType other, const Body& body) {
  visit_float(dtype, [&](auto first) {
    if (other == dtype) {
      body(first, first);
    } else {
      body(first, float{});
    }
  });
}

// Like visit_float, with a second operand that is of the same dtype or already in what that is accumulated in.
template <class Body>
void visit_accumulated(at::ScalarType dtype, at::ScalarType other, const Body& body) {
  visit_float(dtype, [&](auto first) {
    if (other == dtype) {
      body(first, first);
    } else {
      body(first, Acc<decltype(first)>{});
    }
  });
}

// The bits of an element that is as large as two words.
struct TwoWords {
  uint64_t low;
  uint64_t high;
};

// Calls body with a value of a type of so many bytes, for elements that are only copied.
template <class Body>
void visit_bits(size_t bytes, const Body& body) {
  switch (bytes) {
    case 1:
      return body(uint8_t{});
    case 2:
      return body(uint16_t{});
    case 4:
      return body(uint32_t{});
    case 8:
      return body(uint64_t{});
    default:
      TORCH_INTERNAL_ASSERT(bytes == sizeof(TwoWords));
      return body(TwoWords{});
  }
}

}  // namespace fusum

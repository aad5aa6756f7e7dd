#include "ops/broadcast.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <optional>

namespace fusum {
namespace {

using at::Tensor;

// The dimensions of a dense tensor that has elements, the innermost first, without those of one element.
at::DimVector by_stride(const Tensor& dense) {
  at::DimVector order;
  for (int64_t dim = dense.dim() - 1; dim >= 0; --dim) {
    if (dense.size(dim) != 1) {
      order.push_back(dim);
    }
  }
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return dense.stride(a) < dense.stride(b); });
  return order;
}

// Neighbouring dimensions join where one step leads through both; nothing where too many stay apart.
std::optional<Steps> steps_of(const Tensor& tensor, const Tensor& result) {
  Steps steps{1, {1}, {0}};
  const int64_t missing = result.dim() - tensor.dim();
  bool first = true;
  for (const int64_t dim : by_stride(result)) {
    const bool repeats = dim < missing || tensor.size(dim - missing) == 1;
    const int64_t step = repeats ? 0 : tensor.stride(dim - missing);
    const int last = steps.dims - 1;
    if (first) {
      steps.sizes[0] = result.size(dim);
      steps.steps[0] = step;
      first = false;
    } else if (step == steps.sizes[last] * steps.steps[last]) {
      steps.sizes[last] *= result.size(dim);
    } else if (steps.dims == Steps::kMost) {
      return std::nullopt;
    } else {
      steps.sizes[steps.dims] = result.size(dim);
      steps.steps[steps.dims++] = step;
    }
  }
  return steps;
}

// A copy that lies in the order of result.
Tensor in_order(const Tensor& tensor, const Tensor& result) {
  const int64_t missing = result.dim() - tensor.dim();
  at::DimVector strides(tensor.dim(), 1);
  int64_t step = 1;
  for (const int64_t dim : by_stride(result)) {
    if (dim >= missing) {
      strides[dim - missing] = step;
      step *= tensor.size(dim - missing);
    }
  }
  return at::empty_strided(tensor.sizes(), strides, tensor.options()).copy_(tensor);
}

}  // namespace

Spread::Spread(const Tensor& tensor, const Tensor& result) : data(tensor) {
  auto found = steps_of(data, result);
  if (!found || found->steps[0] > 1) {
    data = in_order(tensor, result);
    found = steps_of(data, result);
  }
  if (!found) {
    data = at::empty_like(result, tensor.options()).copy_(tensor);
    found = steps_of(data, result);
  }
  steps = *found;
}

}  // namespace fusum

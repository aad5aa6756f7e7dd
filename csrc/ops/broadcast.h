// A tensor that broadcasts to a dense result, as every kernel reads it: in the order in which the result lies in
// memory.
#pragma once

#include <ATen/core/Tensor.h>

#include "math/index.h"

namespace fusum {

// The tensor is copied only where it lies in another order than the result, and written out in full only where more
// than Steps::kMost of its dimensions do not join.
struct Spread {
  Spread(const at::Tensor& tensor, const at::Tensor& result);

  template <class T>
  Broadcast<T> as() const {
    return {data.const_data_ptr<T>(), steps};
  }

  at::Tensor data;
  Steps steps;
};

}  // namespace fusum

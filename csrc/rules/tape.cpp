#include "rules/tape.h"

#include <ATen/ATen.h>
#include <ATen/functorch/BatchedTensorImpl.h>

namespace fusum::rules {
namespace {

// The dimension in which two shapes of one rank differ, or -1 where that is not one.
int64_t differing(at::IntArrayRef a, at::IntArrayRef b) {
  int64_t found = -1;
  if (a.size() != b.size()) {
    return found;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) {
      if (found >= 0) {
        return -1;
      }
      found = static_cast<int64_t>(i);
    }
  }
  return found;
}

}  // namespace

void Tape::record(const at::Tensor& x) {
  values_.push_back(x.detach());
  versions_.push_back(x._version());
}

void Tape::start(int64_t rows) {
  examples = rows;
  at_ = 0;
}

void Tape::require(bool holds, std::string otherwise) {
  if (!holds) {
    failure = std::move(otherwise);
    TORCH_CHECK_VALUE(false, failure);
  }
}

at::Tensor Tape::next(const at::Tensor& x) {
  const std::string other_way = "forward_func: took another way for baselines than for inputs: ";
  require(at_ < values_.size(), other_way + "no relu where one was; expected the same operators");
  const at::Tensor& ref = values_[at_];
  require(ref._version() == versions_[at_],
          "forward_func: an operator after relu writes over its input in place; expected it not to");
  ++at_;
  if (ref.sizes() != x.sizes()) {
    const int64_t dim = differing(x.sizes(), ref.sizes());
    require(dim >= 0 && !together(), c10::str(other_way, "a tensor of shape ", ref.sizes(), ", not ", x.sizes(),
                                              ", at relu; expected tensors of the same shape"));
    unpairable = x.size(dim) != examples || ref.size(dim) != references;
    require(!unpairable, c10::str("the rows of a tensor of shape ", x.sizes(), " cannot be told apart"));
  }
  return ref;
}

at::Tensor Tape::pair(const at::Tensor& ref, const at::Tensor& x) const {
  if (together() || ref.sizes() == x.sizes()) {
    return ref;
  }
  const int64_t dim = differing(x.sizes(), ref.sizes());
  if (level == 0) {
    return ref.narrow(dim, first, count);
  }
  const at::Tensor rows = each ? ref.unflatten(dim, {examples, each}).narrow(dim + 1, first, count).movedim(dim + 1, 0)
                               : ref.narrow(dim, first, count).movedim(dim, 0).unsqueeze(dim + 1);
  return at::functorch::makeBatched(rows, 0, level);
}

}  // namespace fusum::rules

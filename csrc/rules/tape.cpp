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
  values_.push_back(copies ? x.detach().clone() : x.detach());
  versions_.push_back(values_.back()._version());
}

void Tape::start(int64_t rows) {
  examples = rows;
  at_ = 0;
}

bool Tape::require(bool holds, const char* otherwise) {
  if (!holds && failure.empty()) {
    failure = otherwise;
    unpairable = !together() && !overwritten;
  }
  return holds;
}

at::Tensor Tape::next(const at::Tensor& x) {
  if (!failure.empty() || !require(at_ < values_.size(),
                                   "forward_func: took another way for baselines than for inputs: no relu where one "
                                   "was; expected the same operators")) {
    return {};
  }
  const at::Tensor& ref = values_[at_];
  overwritten = ref._version() != versions_[at_];
  ++at_;
  if (!require(!overwritten, "forward_func: writes over the input of relu")) {
    return {};
  }
  if (ref.sizes() != x.sizes()) {
    const int64_t dim = differing(x.sizes(), ref.sizes());
    const bool pairs = dim >= 0 && !together() && x.size(dim) == examples && ref.size(dim) == references;
    if (!require(pairs,
                 "forward_func: took another way for baselines than for inputs: tensors of other shapes at "
                 "relu; expected the same shapes")) {
      return {};
    }
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

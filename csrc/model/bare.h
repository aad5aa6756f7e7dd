// Tensors and calls that are what they seem to be.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/stack.h>

#include <optional>
#include <utility>
#include <vector>

namespace fusum::model {

// A tensor of memory and nothing else: no subclass, no batch of vmap, no mode.
inline bool is_bare(const at::Tensor& x) {
  const c10::DispatchKeySet about = c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  return x.defined() && x.key_set() - about == c10::DispatchKeySet(c10::DispatchKey::CPU);
}

// An operand that may be left out, as none or as a tensor that is not defined.
inline std::optional<at::Tensor> optional_tensor(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() ? std::optional<at::Tensor>(value.toTensor()) : std::nullopt;
}

// Two numbers, given as one for both or as one for each; what else was given as it is.
inline std::vector<int64_t> both(const c10::IValue& value) {
  std::vector<int64_t> given = value.toIntVector();
  return given.size() == 1 ? std::vector<int64_t>{given[0], given[0]} : given;
}

// Whether gradients of x are taken backwards or not at all: by no transform of functorch, which knows nothing of
// functions such as ours, and not forwards.
bool goes_back_at_most(const at::Tensor& x);

// Calls f with each tensor on the stack, which f may change.
template <class F>
void each_tensor(torch::jit::Stack* stack, size_t count, const F& f) {
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      at::Tensor x = value.toTensor();
      if (f(x)) {
        value = std::move(x);
      }
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list = value.toTensorList();
      bool changed = false;
      c10::List<at::Tensor> others;
      for (at::Tensor x : list.vec()) {
        changed = f(x) || changed;
        others.push_back(std::move(x));
      }
      if (changed) {
        value = std::move(others);
      }
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list = value.toOptionalTensorList();
      bool changed = false;
      c10::List<std::optional<at::Tensor>> others;
      for (std::optional<at::Tensor> x : list.vec()) {
        changed = (x && f(*x)) || changed;
        others.push_back(std::move(x));
      }
      if (changed) {
        value = std::move(others);
      }
    }
  }
}

}  // namespace fusum::model

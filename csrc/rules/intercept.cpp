#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <utility>

#include "rules/rules.h"

namespace fusum::rules {
namespace {

// A tensor without gradient if it is a parameter: what the model was given is not a leaf. Counts what varies.
at::Tensor detached(const at::Tensor& x, int& varying) {
  if (!x.defined() || !x.requires_grad()) {
    return x;
  }
  if (x.is_leaf()) {
    return x.detach();
  }
  ++varying;
  return x;
}

// How many of an operator's operands depend on the explained tensors; parameters among them are detached.
int settle(torch::jit::Stack* stack, size_t operands) {
  int varying = 0;
  for (auto& value : torch::jit::last(*stack, operands)) {
    auto& operand = const_cast<c10::IValue&>(value);
    if (operand.isTensor()) {
      if (operand.toTensor().requires_grad()) {
        operand = detached(operand.toTensor(), varying);
      }
    } else if (operand.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& x : operand.toTensorVector()) {
        list.push_back(detached(x, varying));
      }
      operand = std::move(list);
    } else if (operand.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& x : operand.toOptionalTensorVector()) {
        list.push_back(x ? std::optional<at::Tensor>(detached(*x, varying)) : std::nullopt);
      }
      operand = std::move(list);
    }
  }
  return varying;
}

void relu_of(const c10::OperatorHandle& op, const Pass& pass, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard off(kKey);
  const at::Tensor x = torch::jit::pop(*stack).toTensor();
  if (op.schema().is_mutable()) {
    x.copy_(relu(pass, x.clone()));
    torch::jit::push(*stack, x);
  } else {
    torch::jit::push(*stack, relu(pass, x));
  }
}

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::shared_ptr<Pass> pass = current();
  const auto below = keys - c10::DispatchKeySet(kKey);
  const auto plain = [&] {
    const c10::impl::ExcludeDispatchKeyGuard off(kKey);
    op.redispatchBoxed(below, stack);
  };
  // Without autograd's keys, an operator was called by another one's kernel.
  if (!pass || !keys.has_any(c10::autograd_dispatch_keyset)) {
    return plain();
  }
  int varying = 0;
  {
    const c10::impl::ExcludeDispatchKeyGuard off(kKey);
    varying = settle(stack, op.schema().arguments().size());
  }
  if (varying == 0) {
    return plain();
  }
  switch (pass->table->find(op)) {
    case Action::kParts:
      return op.redispatchBoxed(below, stack);
    case Action::kOne:
      return varying == 1 ? plain() : pass->table->follow(op, stack);
    case Action::kRule:
      return pass->table->follow(op, stack);
    case Action::kRelu:
      return relu_of(op, *pass, stack);
    default:
      return plain();
  }
}

}  // namespace

Action Table::find(const c10::OperatorHandle& op) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(op);
    if (found != known_.end()) {
      return found->second;
    }
  }
  const Action action = look_(op);  // may wait for another thread, which must not wait for us
  const std::lock_guard<std::mutex> lock(mutex_);
  return known_.emplace(op, action).first->second;
}

std::shared_ptr<Pass>& current() {
  static thread_local std::shared_ptr<Pass> pass;
  return pass;
}

void On::enter(std::shared_ptr<Pass> pass) {
  included_ = c10::impl::tls_is_dispatch_key_included(kKey);
  excluded_ = c10::impl::tls_is_dispatch_key_excluded(kKey);
  c10::impl::tls_set_dispatch_key_included(kKey, pass != nullptr);
  c10::impl::tls_set_dispatch_key_excluded(kKey, pass == nullptr);
  outer_ = std::exchange(current(), std::move(pass));
}

void On::leave() {
  current() = std::move(outer_);
  c10::impl::tls_set_dispatch_key_included(kKey, included_);
  c10::impl::tls_set_dispatch_key_excluded(kKey, excluded_);
}

}  // namespace fusum::rules

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fusum::rules::intercept>());
}

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <utility>

#include "rules/rules.h"

namespace fusum::rules {
namespace {

bool is_parameter(const at::Tensor& x) { return x.defined() && x.requires_grad() && x.is_leaf(); }

// What the operands of an operator depend on: what the model was given is not a leaf.
struct Operands {
  int varying = 0;
  bool parameters = false;

  void add(const at::Tensor& x) {
    if (x.defined() && x.requires_grad()) {
      x.is_leaf() ? static_cast<void>(parameters = true) : static_cast<void>(++varying);
    }
  }
};

Operands look_at(const torch::jit::Stack& stack, size_t count) {
  Operands found;
  for (const c10::IValue& operand : torch::jit::last(stack, count)) {
    if (operand.isTensor()) {
      found.add(operand.toTensor());
    } else if (operand.isTensorList()) {
      for (const at::Tensor& x : operand.toTensorVector()) {
        found.add(x);
      }
    } else if (operand.isOptionalTensorList()) {
      for (const auto& x : operand.toOptionalTensorVector()) {
        found.add(x.value_or(at::Tensor()));
      }
    }
  }
  return found;
}

// Parameters among the operands lose their gradient, so that only what varies requires one.
void detach_parameters(torch::jit::Stack* stack, size_t count) {
  const c10::impl::ExcludeDispatchKeyGuard off(kKey);
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    c10::IValue& operand = (*stack)[i];
    if (operand.isTensor()) {
      if (is_parameter(operand.toTensor())) {
        operand = operand.toTensor().detach();
      }
    } else if (operand.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& x : operand.toTensorVector()) {
        list.push_back(is_parameter(x) ? x.detach() : x);
      }
      operand = std::move(list);
    } else if (operand.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& x : operand.toOptionalTensorVector()) {
        list.push_back(x && is_parameter(*x) ? std::optional<at::Tensor>(x->detach()) : x);
      }
      operand = std::move(list);
    }
  }
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
  const size_t count = op.schema().arguments().size();
  const Operands operands = look_at(*stack, count);
  const auto follow = [&] {
    if (operands.parameters) {
      detach_parameters(stack, count);
    }
    pass->table->follow(op, stack);
  };
  if (operands.varying == 0) {
    if (operands.parameters) {
      detach_parameters(stack, count);
    }
    return plain();
  }
  switch (pass->table->find(op)) {
    case Action::kParts:
      return op.redispatchBoxed(below, stack);
    case Action::kOne:
      return operands.varying == 1 ? plain() : follow();
    case Action::kRule:
      return follow();
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

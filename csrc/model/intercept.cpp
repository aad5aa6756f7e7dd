#include "model/intercept.h"

#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <utility>

#include "model/bare.h"
#include "model/convolve.h"
#include "model/frozen.h"
#include "model/kinds.h"
#include "model/layout.h"
#include "model/linear.h"
#include "model/pool.h"
#include "ops/product.h"

namespace fusum::model {

struct State {
  Images images;
  bool plainly_all = false;  // no image of this call may lie channels_last
  bool plainly = false;      // none of this forward
  bool again = false;        // the way back may call operators that were called our way again, as checkpoints do
  bool back = false;         // an operator is called on the way back
};

namespace {

std::shared_ptr<State>& current() {
  static thread_local std::shared_ptr<State> state;
  return state;
}

// Whether all tensors are bare. Others are taken apart further down, by vmap or a subclass, into such as come to us.
bool are_bare(torch::jit::Stack* stack, size_t count) {
  bool bare = true;
  each_tensor(stack, count, [&](const at::Tensor& x) {
    bare = bare && (!x.defined() || is_bare(x) || !x.is_cpu());
    return false;
  });
  return bare;
}

// Whether an operator of this kind may be called our way.
bool concerns(const State& state, Kind kind) {
  return state.images.used || kind == Kind::kConvolve || kind == Kind::kNormalise || kind == Kind::kLinear ||
         kind == Kind::kPool;
}

// Calls an operator that has another way, if that is of use.
bool called_otherwise(const c10::OperatorHandle& op, Kind kind, torch::jit::Stack* stack, size_t count) {
  const c10::impl::ExcludeDispatchKeyGuard off(kKey);
  return (kind == Kind::kLinear && multiply_faster(stack)) ||
         (kind == Kind::kConvolve && convolve_faster(stack, count)) || (kind == Kind::kPool && pool_faster(stack)) ||
         (kind == Kind::kNormalise && normalise_frozen(op, stack));
}

void intercept(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::shared_ptr<State> state = current();
  const auto below = keys - c10::DispatchKeySet(kKey);
  const size_t count = op.schema().arguments().size();
  const Kind kind = kind_of(op);
  if (!state) {  // a thread that a model has started
    const c10::impl::ExcludeDispatchKeyGuard off(kKey);
    return op.redispatchBoxed(below, stack);
  }
  if (kind == Kind::kParts || (concerns(*state, kind) && !are_bare(stack, count))) {
    return op.redispatchBoxed(below, stack);
  }
  if (called_otherwise(op, kind, stack, count)) {
    state->again = state->again || at::SavedTensorDefaultHooks::get_hooks().has_value();
    return;
  }
  if (kind == Kind::kLinear) {  // its parts are asked
    return op.redispatchBoxed(below, stack);
  }
  const c10::impl::ExcludeDispatchKeyGuard off(kKey);
  const bool convolves = kind == Kind::kConvolve && !state->plainly && convolve_last(state->images, stack, count);
  if (!state->images.used) {
    return op.redispatchBoxed(below, stack);
  }
  call_on_images(state->images, op, kind, convolves, state->back, below, stack);
}

}  // namespace

void Call::enter(bool plainly, bool sparing) {
  spared_ = spare_onednn(sparing);
  included_ = c10::impl::tls_is_dispatch_key_included(kKey);
  excluded_ = c10::impl::tls_is_dispatch_key_excluded(kKey);
  c10::impl::tls_set_dispatch_key_included(kKey, false);
  outer_ = std::exchange(current(), std::make_shared<State>());
  current()->plainly_all = plainly || sparing;
}

void Call::leave() {
  spare_onednn(spared_);
  current() = std::move(outer_);
  c10::impl::tls_set_dispatch_key_included(kKey, included_);
  c10::impl::tls_set_dispatch_key_excluded(kKey, excluded_);
}

void On::enter(bool plainly, bool back) {
  included_ = c10::impl::tls_is_dispatch_key_included(kKey);
  excluded_ = c10::impl::tls_is_dispatch_key_excluded(kKey);
  const auto& state = current();
  if (state) {
    plainly_ = std::exchange(state->plainly, plainly || state->plainly_all || (back && !state->images.used));
    back_ = std::exchange(state->back, back);
  }
  c10::impl::tls_set_dispatch_key_included(kKey, state != nullptr);
  c10::impl::tls_set_dispatch_key_excluded(kKey, false);
}

void On::leave() {
  c10::impl::tls_set_dispatch_key_included(kKey, included_);
  c10::impl::tls_set_dispatch_key_excluded(kKey, excluded_);
  const auto& state = current();
  if (state) {
    state->plainly = plainly_;
    state->back = back_;
    if (!included_) {
      state->images.twins.clear();
    }
  }
}

bool goes_back() { return current() && (current()->images.used || current()->again); }

}  // namespace fusum::model

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericWrapper, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fusum::model::intercept>());
}

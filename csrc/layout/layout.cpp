#include "layout/layout.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "layout/frozen.h"
#include "layout/kinds.h"

namespace fusum::layout {

using at::Tensor;
using Impl = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

namespace {

constexpr auto kLast = at::MemoryFormat::ChannelsLast;

// A convolution's weights, and the same channels_last.
struct Weights {
  Tensor given;  // without graph: the memory, and the version that was copied
  uint32_t version;
  Tensor last;

  bool of(const Tensor& weight) const {
    return given.is_alias_of(weight) && given.storage_offset() == weight.storage_offset() &&
           given.sizes() == weight.sizes() && given.strides() == weight.strides();
  }
  // As the copy itself has a graph where one was to be had.
  bool serves(const Tensor& weight) const {
    return version == weight._version() &&
           last.requires_grad() == (weight.requires_grad() && at::GradMode::is_enabled());
  }
};

// An image that lies channels_last, and the copy that stood for it where memory was to be shared: what is written to
// one of them is written to the other.
struct Twins {
  Impl last;
  Impl plain;
};

}  // namespace

struct State {
  std::vector<Weights> weights;
  std::vector<Twins> twins;
  bool plainly_all = false;  // no image of this call may lie channels_last
  bool plainly = false;      // none of this forward
  bool used = false;
  bool frozen = false;  // a batch normalisation has been called our way
  bool back = false;    // an operator is called on the way back
};

namespace {

std::shared_ptr<State>& current() {
  static thread_local std::shared_ptr<State> state;
  return state;
}

Tensor locked(const Impl& weak) {
  auto strong = weak.lock();
  return strong.defined() ? Tensor(std::move(strong)) : Tensor();
}

// A tensor of memory and nothing else: no subclass, no batch of vmap, no mode.
bool is_bare(const Tensor& x) {
  const c10::DispatchKeySet about = c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  return x.defined() && x.key_set() - about == c10::DispatchKeySet(c10::DispatchKey::CPU);
}

bool is_image(const Tensor& x) { return is_bare(x) && x.dim() == 4 && x.scalar_type() == at::kFloat; }

bool lies_last(const Tensor& x) {
  return x.defined() && x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(kLast) && is_bare(x);
}

// Calls f with each tensor on the stack, which f may change.
template <class F>
void each_tensor(torch::jit::Stack* stack, size_t count, const F& f) {
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      Tensor x = value.toTensor();
      if (f(x)) {
        value = std::move(x);
      }
    } else if (value.isTensorList()) {
      c10::List<Tensor> list = value.toTensorList();
      bool changed = false;
      c10::List<Tensor> others;
      for (Tensor x : list.vec()) {
        changed = f(x) || changed;
        others.push_back(std::move(x));
      }
      if (changed) {
        value = std::move(others);
      }
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list = value.toOptionalTensorList();
      bool changed = false;
      c10::List<std::optional<Tensor>> others;
      for (std::optional<Tensor> x : list.vec()) {
        changed = (x && f(*x)) || changed;
        others.push_back(std::move(x));
      }
      if (changed) {
        value = std::move(others);
      }
    }
  }
}

// Whether a convolution gains by the layout. Patches that do not overlap are one product of matrices, and channels on
// their own are none: those alone do not. Nor does one of small images by large weights, of which copies take memory.
bool gains(const Tensor& x, const Tensor& weight, const torch::jit::Stack& stack, size_t count) {
  if (!is_image(x) || !is_image(weight) || at::autocast::is_autocast_enabled(at::kCPU)) {
    return false;
  }
  const auto stride = torch::jit::peek(stack, 3, count).toIntVector();
  const bool patches = weight.size(2) > 1 && stride[0] >= weight.size(2);
  const bool apart = weight.size(1) == 1 && torch::jit::peek(stack, 8, count).toInt() > 1;
  return weight.numel() <= 2 * x.numel() && (lies_last(x) || !(patches || apart));
}

// Weights channels_last; copied once a call, unless they are made anew at each forward.
Tensor weights_last(State& state, const Tensor& weight) {
  if (weight.requires_grad() && !weight.is_leaf()) {
    return weight.clone(kLast);
  }
  auto& kept = state.weights;
  const auto found = std::find_if(kept.begin(), kept.end(), [&](const Weights& w) { return w.of(weight); });
  if (found != kept.end() && found->serves(weight)) {
    return found->last;
  }
  // What nobody else holds any more was made for one forward.
  const auto stale = [&](const Weights& w) { return w.of(weight) || w.given.storage().use_count() == 1; };
  kept.erase(std::remove_if(kept.begin(), kept.end(), stale), kept.end());
  const Tensor last = weight.clone(kLast);
  const at::NoGradGuard off;
  kept.push_back({weight.detach(), weight._version(), last});
  return last;
}

// Whether a convolution computes channels_last, as it does if its weights lie so: torch then lays its input so.
bool convolve_last(State& state, torch::jit::Stack* stack, size_t count) {
  c10::IValue& weight = torch::jit::peek(*stack, 1, count);
  const Tensor given = weight.toTensor();
  if (state.plainly) {
    return false;
  }
  if (given.suggest_memory_format() == kLast) {
    return true;
  }
  if (!gains(torch::jit::peek(*stack, 0, count).toTensor(), given, *stack, count)) {
    return false;
  }
  weight = weights_last(state, given);
  state.used = true;
  return true;
}

// The copy of an image that lies as it would have: what is written to it is written to the image.
Tensor plain_twin(State& state, const Tensor& x) {
  state.twins.erase(std::remove_if(state.twins.begin(), state.twins.end(),
                                   [](const Twins& t) { return t.last.expired() || t.plain.expired(); }),
                    state.twins.end());
  Tensor plain = x.contiguous();
  state.twins.push_back({Impl(x.getIntrusivePtr()), Impl(plain.getIntrusivePtr())});
  return plain;
}

// Writes what has been written to a tensor to the others that stand for the same.
void write_twins(State& state, const Tensor& written) {
  std::vector<Tensor> fresh = {written};
  std::unordered_set<const c10::StorageImpl*> seen;
  const auto storage = [](const Tensor& x) { return x.storage().unsafeGetStorageImpl(); };
  seen.insert(storage(written));
  while (!fresh.empty()) {
    const Tensor from = std::move(fresh.back());
    fresh.pop_back();
    for (const Twins& twins : state.twins) {
      Tensor a = locked(twins.last);
      Tensor b = locked(twins.plain);
      if (!a.defined() || !b.defined()) {
        continue;
      }
      if (storage(b) == storage(from)) {
        std::swap(a, b);
      }
      if (storage(a) == storage(from) && seen.insert(storage(b)).second) {
        b.copy_(a);
        fresh.push_back(std::move(b));
      }
    }
  }
}

// Whether all tensors are bare. Others are taken apart further down, by vmap or a subclass, into such as come to us.
bool are_bare(torch::jit::Stack* stack, size_t count) {
  bool bare = true;
  each_tensor(stack, count, [&](const Tensor& x) {
    bare = bare && (!x.defined() || is_bare(x) || !x.is_cpu());
    return false;
  });
  return bare;
}

// Gives an operator images as they would have lain; those that it writes to are returned, each with what stands for it.
std::vector<std::pair<Tensor, Tensor>> lay_plainly(State& state, torch::jit::Stack* stack, size_t count, bool shares,
                                                   bool writes) {
  std::vector<std::pair<Tensor, Tensor>> replaced;
  each_tensor(stack, count, [&](Tensor& x) {
    if (!lies_last(x)) {
      return false;
    }
    const Tensor last = x;
    x = shares || writes ? plain_twin(state, last) : last.contiguous();
    if (writes) {
      replaced.emplace_back(last, x);
    }
    return true;
  });
  return replaced;
}

// Images of one shape that do not all lie alike are read slowly: they follow the first where that is written to, or
// else lie channels_last. Returns whether one did.
bool lay_alike(const c10::FunctionSchema& schema, torch::jit::Stack* stack) {
  const size_t count = schema.arguments().size();
  Tensor like;
  size_t plain = 0;
  each_tensor(stack, count, [&](const Tensor& x) {
    const bool last = lies_last(x);
    like = last ? x : like;
    plain += !last && is_image(x);
    return false;
  });
  if (!like.defined() || plain == 0) {
    return like.defined();
  }
  const c10::IValue& first = torch::jit::peek(*stack, 0, count);
  const auto* alias = schema.arguments()[0].alias_info();
  const bool writes = alias != nullptr && alias->isWrite();
  if (schema.is_mutable() && !(writes && first.isTensor())) {
    return true;
  }
  const Tensor written = writes ? first.toTensor() : Tensor();
  const bool last = !writes || lies_last(written);
  each_tensor(stack, count, [&](Tensor& x) {
    const bool stays = !is_image(x) || x.sizes() != like.sizes() || lies_last(x) == last || x.is_same(written);
    x = stays ? x : x.contiguous(last ? kLast : at::MemoryFormat::Contiguous);
    return !stays;
  });
  return true;
}

std::vector<Tensor> written_by(const c10::FunctionSchema& schema, const torch::jit::Stack& stack) {
  std::vector<Tensor> written;
  const size_t count = schema.arguments().size();
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    const c10::IValue& value = torch::jit::peek(stack, i, count);
    if (alias == nullptr || !alias->isWrite()) {
      continue;
    }
    if (value.isTensor()) {
      written.push_back(value.toTensor());
    } else if (value.isTensorList()) {
      const auto list = value.toTensorVector();
      written.insert(written.end(), list.begin(), list.end());
    }
  }
  return written;
}

void keep_layout(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::shared_ptr<State> state = current();
  const auto below = keys - c10::DispatchKeySet(kKey);
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const Kind kind = kind_of(op);
  if (state && (kind == Kind::kParts || !are_bare(stack, count))) {
    return op.redispatchBoxed(below, stack);
  }
  const c10::impl::ExcludeDispatchKeyGuard off(kKey);
  if (state && kind == Kind::kNormalise && normalise_frozen(op, stack)) {
    state->frozen = true;
    return;
  }
  const bool convolves = state && kind == Kind::kConvolve && convolve_last(*state, stack, count);
  if (!state || !state->used) {
    return op.redispatchBoxed(below, stack);
  }
  const bool writes = schema.is_mutable();
  if (kind == Kind::kSlice && state->back) {
    return op.redispatchBoxed(below, stack);
  }
  const bool keeps = kind == Kind::kKeep || kind == Kind::kNormalise || convolves;
  bool any = false;
  std::vector<std::pair<Tensor, Tensor>> replaced;
  if (keeps) {
    any = lay_alike(schema, stack);
  } else {
    replaced = lay_plainly(*state, stack, count, kind != Kind::kGive, writes);
  }
  std::vector<Tensor> written;
  if (writes && !state->twins.empty()) {
    written = written_by(schema, *stack);
  }
  op.redispatchBoxed(below, stack);
  for (const Tensor& x : written) {
    if (is_bare(x)) {
      write_twins(*state, x);
    }
  }
  const size_t results = schema.returns().size();
  for (const auto& [last, plain] : replaced) {
    each_tensor(stack, results, [last = last, plain = plain](Tensor& y) {
      const bool stood = y.is_same(plain);
      y = stood ? last : y;
      return stood;
    });
  }
  if (any && !writes) {  // what other ranks or reductions leave lies in neither way
    each_tensor(stack, results, [](Tensor& y) {
      const bool neither = is_bare(y) && !y.is_contiguous() && !lies_last(y);
      y = neither ? y.contiguous() : y;
      return neither;
    });
  }
}

}  // namespace

void Call::enter(bool plainly) {
  included_ = c10::impl::tls_is_dispatch_key_included(kKey);
  excluded_ = c10::impl::tls_is_dispatch_key_excluded(kKey);
  c10::impl::tls_set_dispatch_key_included(kKey, false);
  outer_ = std::exchange(current(), std::make_shared<State>());
  current()->plainly_all = plainly;
}

void Call::leave() {
  current() = std::move(outer_);
  c10::impl::tls_set_dispatch_key_included(kKey, included_);
  c10::impl::tls_set_dispatch_key_excluded(kKey, excluded_);
}

void On::enter(bool plainly, bool back) {
  included_ = c10::impl::tls_is_dispatch_key_included(kKey);
  excluded_ = c10::impl::tls_is_dispatch_key_excluded(kKey);
  if (current()) {
    plainly_ = std::exchange(current()->plainly, plainly || current()->plainly_all || (back && !current()->used));
    back_ = std::exchange(current()->back, back);
  }
  c10::impl::tls_set_dispatch_key_included(kKey, current() != nullptr);
  c10::impl::tls_set_dispatch_key_excluded(kKey, false);
}

void On::leave() {
  c10::impl::tls_set_dispatch_key_included(kKey, included_);
  c10::impl::tls_set_dispatch_key_excluded(kKey, excluded_);
  if (current()) {
    current()->plainly = plainly_;
    current()->back = back_;
    if (!included_) {
      current()->twins.clear();
    }
  }
}

bool used() { return current() && (current()->used || current()->frozen); }

}  // namespace fusum::layout

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericWrapper, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fusum::layout::keep_layout>());
}

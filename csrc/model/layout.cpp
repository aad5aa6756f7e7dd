#include "model/layout.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "model/bare.h"

namespace fusum::model {
namespace {

using at::Tensor;

constexpr auto kLast = at::MemoryFormat::ChannelsLast;

Tensor locked(const Twins::Impl& weak) {
  auto strong = weak.lock();
  return strong.defined() ? Tensor(std::move(strong)) : Tensor();
}

bool is_image(const Tensor& x) { return is_bare(x) && x.dim() == 4 && x.scalar_type() == at::kFloat; }

bool lies_last(const Tensor& x) {
  return x.defined() && x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(kLast) && is_bare(x);
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
Tensor weights_last(Images& images, const Tensor& weight) {
  if (weight.requires_grad() && !weight.is_leaf()) {
    return weight.clone(kLast);
  }
  auto& kept = images.weights;
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

// The copy of an image that lies as it would have: what is written to it is written to the image.
Tensor plain_twin(Images& images, const Tensor& x) {
  images.twins.erase(std::remove_if(images.twins.begin(), images.twins.end(),
                                    [](const Twins& t) { return t.last.expired() || t.plain.expired(); }),
                     images.twins.end());
  Tensor plain = x.contiguous();
  images.twins.push_back({Twins::Impl(x.getIntrusivePtr()), Twins::Impl(plain.getIntrusivePtr())});
  return plain;
}

// Writes what has been written to a tensor to the others that stand for the same.
void write_twins(Images& images, const Tensor& written) {
  std::vector<Tensor> fresh = {written};
  std::unordered_set<const c10::StorageImpl*> seen;
  const auto storage = [](const Tensor& x) { return x.storage().unsafeGetStorageImpl(); };
  seen.insert(storage(written));
  while (!fresh.empty()) {
    const Tensor from = std::move(fresh.back());
    fresh.pop_back();
    for (const Twins& twins : images.twins) {
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

// Gives an operator images as they would have lain; those that it writes to are returned, each with what stands for it.
std::vector<std::pair<Tensor, Tensor>> lay_plainly(Images& images, torch::jit::Stack* stack, size_t count, bool shares,
                                                   bool writes) {
  std::vector<std::pair<Tensor, Tensor>> replaced;
  each_tensor(stack, count, [&](Tensor& x) {
    if (!lies_last(x)) {
      return false;
    }
    const Tensor last = x;
    x = shares || writes ? plain_twin(images, last) : last.contiguous();
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

}  // namespace

bool Weights::of(const Tensor& weight) const {
  return given.is_alias_of(weight) && given.storage_offset() == weight.storage_offset() &&
         given.sizes() == weight.sizes() && given.strides() == weight.strides();
}

// As the copy itself has a graph where one was to be had.
bool Weights::serves(const Tensor& weight) const {
  return version == weight._version() && last.requires_grad() == (weight.requires_grad() && at::GradMode::is_enabled());
}

bool convolve_last(Images& images, torch::jit::Stack* stack, size_t count) {
  c10::IValue& weight = torch::jit::peek(*stack, 1, count);
  const Tensor given = weight.toTensor();
  if (given.suggest_memory_format() == kLast) {
    return true;
  }
  const Tensor x = torch::jit::peek(*stack, 0, count).toTensor();
  const bool own = !images.used && lies_last(x);  // the model has laid it so, and goes on with that
  if (own || !gains(x, given, *stack, count)) {
    return false;
  }
  weight = weights_last(images, given);
  images.used = true;
  return true;
}

void call_on_images(Images& images, const c10::OperatorHandle& op, Kind kind, bool convolves, bool back,
                    c10::DispatchKeySet below, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const bool writes = schema.is_mutable();
  if (kind == Kind::kSlice && back) {
    return op.redispatchBoxed(below, stack);
  }
  const bool keeps = kind == Kind::kKeep || kind == Kind::kNormalise || kind == Kind::kPool || convolves;
  bool any = false;
  std::vector<std::pair<Tensor, Tensor>> replaced;
  if (keeps) {
    any = lay_alike(schema, stack);
  } else {
    replaced = lay_plainly(images, stack, count, kind != Kind::kGive, writes);
  }
  std::vector<Tensor> written;
  if (writes && !images.twins.empty()) {
    written = written_by(schema, *stack);
  }
  op.redispatchBoxed(below, stack);
  for (const Tensor& x : written) {
    if (is_bare(x)) {
      write_twins(images, x);
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

}  // namespace fusum::model

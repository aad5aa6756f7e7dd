// Images that lie channels_last, where convolutions run fastest.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

#include "model/kinds.h"

namespace fusum::model {

// A convolution's weights, and the same channels_last.
struct Weights {
  at::Tensor given;  // without graph: the memory, and the version that was copied
  int64_t version;
  at::Tensor last;

  bool of(const at::Tensor& weight) const;
  bool serves(const at::Tensor& weight) const;
};

// An image that lies channels_last, and the copy that stood for it where memory was to be shared: what is written to
// one of them is written to the other.
struct Twins {
  using Impl = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  Impl last;
  Impl plain;
};

// What is known of the images of one call of an attribution. used: some lie channels_last.
struct Images {
  std::vector<Weights> weights;
  std::vector<Twins> twins;
  bool used = false;
};

// Whether a convolution with its operands on the stack computes channels_last, as it does if its weights lie so, which
// they are made to where that gains: torch then lays its input so.
bool convolve_last(Images& images, torch::jit::Stack* stack, size_t count);

// Calls op with the operands on the stack once some images lie channels_last; back: on the way back.
void call_on_images(Images& images, const c10::OperatorHandle& op, Kind kind, bool convolves, bool back,
                    c10::DispatchKeySet below, torch::jit::Stack* stack);

}  // namespace fusum::model

// Batch normalisation by fixed statistics, which keeps nothing of an image for the way back.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace fusum::model {

// Calls op with the operands on the stack and leaves its results there, if it is a batch normalisation that goes back
// to its image by fixed statistics; returns whether it was one. torch keeps the image, of which only the gradients of
// weights would have need, and sums those that nobody asks for on every way back.
bool normalise_frozen(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace fusum::model

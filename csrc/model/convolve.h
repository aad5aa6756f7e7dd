// Convolutions of few positions of one image by many weights, each of which is read once.
#pragma once

#include <ATen/core/stack.h>

namespace fusum::model {

// Calls aten::convolution or _convolution with the count operands on the stack and leaves its result there, if a
// product of matrices is faster; returns whether.
bool convolve_faster(torch::jit::Stack* stack, size_t count);

}  // namespace fusum::model

// Linear layers whose products of matrices are another library's.
#pragma once

#include <ATen/core/stack.h>

namespace fusum::model {

// Calls aten::linear with the operands on the stack and leaves its result there, if it is faster so; returns whether.
bool multiply_faster(torch::jit::Stack* stack);

}  // namespace fusum::model

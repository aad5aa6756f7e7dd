// Max-pools of images, without a branch for each number.
#pragma once

#include <ATen/core/stack.h>

namespace fusum::model {

// Calls aten::max_pool2d_with_indices with the operands on the stack and leaves its results there, if they are what
// ours is for; returns whether.
bool pool_faster(torch::jit::Stack* stack);

}  // namespace fusum::model

#include <torch/library.h>

#include "math/path.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

// A thread owns its elements of total, so each is summed in the order of the nodes.
template <int Width, class A, class G>
__global__ void add_points(A* total, const G* gradients, const double* weights, int64_t elements, int64_t nodes) {
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    auto sum = load<Width>(static_cast<const A*>(total) + element);
#pragma unroll 4
    for (int64_t node = 0; node < nodes; ++node) {
      const auto gradient = load<Width>(gradients + offset_of(node, elements) + element);
      const A weight = static_cast<A>(weights[node]);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        sum.value[i] = fusum::path_sum(sum.value[i], weight, static_cast<A>(gradient.value[i]));
      }
    }
    store(total + element, sum);
  }
}

template <class A, class G>
void launch(const PathSum& call) {
  A* total = call.total.work.mutable_data_ptr<A>();
  const G* gradients = call.gradients.const_data_ptr<G>();
  const auto add = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    add_points<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        total, gradients, call.weights.const_data_ptr<double>(), call.elements, call.nodes);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.elements, add, gradients, total);
}

void path_sum(const at::Tensor& total, const at::Tensor& gradients, const at::Tensor& weights) {
  const c10::cuda::CUDAGuard guard(total.device());
  const PathSum call(total, gradients, weights);
  if (call.gradients.numel() > 0) {
    visit_total(total.scalar_type(), [&](auto sum) {
      visit_float(gradients.scalar_type(), [&](auto part) { launch<decltype(sum), decltype(part)>(call); });
    });
    call.total.store();
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("path_sum", &path_sum); }

}  // namespace fusum::cuda

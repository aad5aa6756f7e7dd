#include <torch/library.h>

#include "math/path.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

// Inputs and baselines are read once; the y dimension of the grid shares out the nodes where elements are few.
template <int Width, class T>
__global__ void fill_points(const T* inputs, BaseRows<T> rows, const double* alphas, T* points, int64_t elements,
                            int64_t row_elements, int64_t nodes) {
  using A = Acc<T>;
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const auto input = load<Width>(inputs + element);
    const auto base = load<Width>(rows, element / row_elements, element % row_elements);
    for (int64_t node = blockIdx.y; node < nodes; node += gridDim.y) {
      const A alpha = static_cast<A>(alphas[node]);
      Pack<T, Width> point;
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const A from = static_cast<A>(base.value[i]);
        point.value[i] = static_cast<T>(fusum::path_point(from, static_cast<A>(input.value[i]) - from, alpha));
      }
      store(points + offset_of(node, elements) + element, point);
    }
  }
}

template <class T>
void launch(const PathPoints& call) {
  const T* inputs = call.inputs.const_data_ptr<T>();
  const BaseRows<T> rows = call.base.rows<T>();
  T* points = call.points.mutable_data_ptr<T>();
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    dim3 grid(blocks_for(call.elements / kWidth));
    grid.y = static_cast<unsigned>(
        std::clamp<int64_t>(most_blocks() / grid.x, 1, std::min<int64_t>(call.nodes, UINT16_MAX)));
    fill_points<kWidth><<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        inputs, rows, call.alphas.const_data_ptr<double>(), points, call.elements, call.row, call.nodes);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, fill, inputs, points, rows.element_step ? rows.data : inputs);
}

at::Tensor path_points(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                       const at::Tensor& alphas) {
  const c10::cuda::CUDAGuard guard(inputs.device());
  const PathPoints call(inputs, baselines, index, alphas);
  if (call.points.numel() > 0) {
    visit_float(inputs.scalar_type(), [&](auto type) { launch<decltype(type)>(call); });
  }
  return call.points;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("path_points", &path_points); }

}  // namespace fusum::cuda

#include <torch/library.h>

#include "math/path.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

template <int Width, class T>
__global__ void fill_points(const T* inputs, BaseRows<T> rows, const Acc<T>* coefficients, T* points, int64_t elements,
                            int64_t row_elements) {
  using A = Acc<T>;
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const int64_t row = element / row_elements;
    const auto input = load<Width>(inputs + element);
    const auto base = load<Width>(rows, row, element % row_elements);
    const A coefficient = coefficients[row];
    Pack<T, Width> point;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      point.value[i] = static_cast<T>(
          fusum::random_point(static_cast<A>(input.value[i]), static_cast<A>(base.value[i]), coefficient));
    }
    store(points + element, point);
  }
}

template <class T>
void launch(const RandomPoints& call) {
  const T* inputs = call.inputs.const_data_ptr<T>();
  const BaseRows<T> rows = call.base.rows<T>();
  T* points = call.points.mutable_data_ptr<T>();
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    fill_points<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        inputs, rows, call.coefficients.const_data_ptr<Acc<T>>(), points, call.elements, call.row);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, fill, inputs, points, rows.element_step ? rows.data : inputs);
}

at::Tensor random_points(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                         const at::Tensor& coefficients) {
  const c10::cuda::CUDAGuard guard(inputs.device());
  const RandomPoints call(inputs, baselines, index, coefficients);
  if (call.elements > 0) {
    visit_float(inputs.scalar_type(), [&](auto type) { launch<decltype(type)>(call); });
  }
  return call.points;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("random_points", &random_points); }

}  // namespace fusum::cuda

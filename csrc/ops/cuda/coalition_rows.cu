#include <torch/library.h>

#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

template <int Width, class T>
__global__ void fill_rows(Coalitions<T> from, T* rows, int64_t elements, int64_t examples, int64_t coalitions) {
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const int64_t row = element / from.row_elements;
    const int64_t place = element % from.row_elements;
    CUDA_KERNEL_ASSERT(from.examples[row] >= 0 && from.examples[row] < examples);
    CUDA_KERNEL_ASSERT(from.which[row] >= 0 && from.which[row] < coalitions);
    const bool* members = from.coalition_of(row);
    const auto feature = load<Width>(from.feature_at(row, place));
    const auto base = load<Width>(from.base, row, place);
    auto target = load<Width>(from.input_at(row, place));
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      CUDA_KERNEL_ASSERT(feature.value[i] >= 0 && feature.value[i] < from.count);
      if (!members[feature.value[i]]) {
        target.value[i] = base.value[i];
      }
    }
    store(rows + element, target);
  }
}

template <class T>
void launch(const CoalitionRows& call) {
  const auto from = call.as<T>();
  T* rows = static_cast<T*>(call.rows.mutable_data_ptr());
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    fill_rows<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        from, rows, call.elements, call.inputs.size(0), call.coalitions.size(0));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, fill, from.inputs, from.features, rows, from.base.element_step ? from.base.data : from.inputs);
}

at::Tensor coalition_rows(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                          const at::Tensor& features, const at::Tensor& coalitions, const at::Tensor& which,
                          const at::Tensor& examples) {
  const c10::cuda::CUDAGuard guard(inputs.device());
  const CoalitionRows call(inputs, baselines, index, features, coalitions, which, examples);
  if (call.elements > 0) {
    visit_bits(inputs.element_size(), [&](auto bits) { launch<decltype(bits)>(call); });
  }
  return call.rows;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("coalition_rows", &coalition_rows); }

}  // namespace fusum::cuda

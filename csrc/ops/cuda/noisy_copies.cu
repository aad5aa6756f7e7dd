#include <torch/library.h>

#include "math/samples.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

template <int Width, class T, class N>
__global__ void fill_copies(const T* inputs, const N* noises, Acc<T> stdev, T* copies, int64_t elements,
                            int64_t row_elements, int64_t samples, int64_t start) {
  using A = Acc<T>;
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const int64_t example = example_of(element / row_elements, start, samples);
    const auto input = load<Width>(inputs + offset_of(example, row_elements) + element % row_elements);
    const auto noise = load<Width>(noises + element);
    Pack<T, Width> copy;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      copy.value[i] =
          static_cast<T>(fusum::noisy_copy(static_cast<A>(input.value[i]), stdev, static_cast<A>(noise.value[i])));
    }
    store(copies + element, copy);
  }
}

template <class T, class N>
void launch(const NoisyCopies& call, double stdev, int64_t samples, int64_t start) {
  const T* inputs = call.inputs.const_data_ptr<T>();
  const N* noises = call.noise.const_data_ptr<N>();
  T* copies = call.copies.mutable_data_ptr<T>();
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    fill_copies<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        inputs, noises, static_cast<Acc<T>>(stdev), copies, call.elements, call.row, samples, start);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, fill, inputs, noises, copies);
}

at::Tensor noisy_copies(const at::Tensor& inputs, const at::Tensor& noise, double stdev, int64_t samples,
                        int64_t start) {
  const c10::cuda::CUDAGuard guard(inputs.device());
  const NoisyCopies call(inputs, noise, samples, start);
  if (call.elements > 0) {
    visit_pair(inputs.scalar_type(), noise.scalar_type(),
               [&](auto input, auto unit) { launch<decltype(input), decltype(unit)>(call, stdev, samples, start); });
  }
  return call.copies;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("noisy_copies", &noisy_copies); }

}  // namespace fusum::cuda

#include <torch/library.h>

#include "math/path.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

template <int Width, class T, class G>
__global__ void fill_products(const G* gradients, const T* inputs, BaseRows<T> rows, G* products, int64_t elements,
                              int64_t row_elements) {
  using A = Acc<T>;
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const auto gradient = load<Width>(gradients + element);
    const auto input = load<Width>(inputs + element);
    const auto base = load<Width>(rows, element / row_elements, element % row_elements);
    Pack<G, Width> product;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      product.value[i] = static_cast<G>(fusum::times_change(
          static_cast<A>(gradient.value[i]), static_cast<A>(input.value[i]), static_cast<A>(base.value[i])));
    }
    store(products + element, product);
  }
}

template <class T, class G>
void launch(const TimesChange& call) {
  const T* inputs = call.inputs.const_data_ptr<T>();
  const G* gradients = call.gradients.const_data_ptr<G>();
  const BaseRows<T> rows = call.base.rows<T>();
  G* products = call.products.mutable_data_ptr<G>();
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    fill_products<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        gradients, inputs, rows, products, call.elements, call.row);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, fill, inputs, gradients, products, rows.element_step ? rows.data : inputs);
}

at::Tensor times_change(const at::Tensor& gradients, const at::Tensor& inputs, const at::Tensor& baselines,
                        const std::optional<at::Tensor>& index) {
  const c10::cuda::CUDAGuard guard(inputs.device());
  const TimesChange call(gradients, inputs, baselines, index);
  if (call.elements > 0) {
    visit_pair(inputs.scalar_type(), gradients.scalar_type(),
               [&](auto input, auto gradient) { launch<decltype(input), decltype(gradient)>(call); });
  }
  return call.products;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("times_change", &times_change); }

}  // namespace fusum::cuda

#include <torch/library.h>

#include "math/rescale.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

// y, y_ref and slope; none of them for ReLU.
template <class T, bool Relu>
struct Values {
  Broadcast<T> y;
  Broadcast<T> y_ref;
  Broadcast<T> slope;
};

template <class T>
struct Values<T, true> {};

template <int Width, class T, class G, bool Relu>
__global__ void fill_products(Broadcast<G> gradients, Broadcast<T> examples, Broadcast<T> references,
                              Values<T, Relu> values, G* products, int64_t elements, Tolerance<Acc<T>> tolerance) {
  using A = Acc<T>;
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = step * Width;
    const auto gradient = load<Width>(gradients, element);
    const auto x = load<Width>(examples, element);
    const auto x_ref = load<Width>(references, element);
    Pack<G, Width> product;
    if constexpr (Relu) {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        product.value[i] = static_cast<G>(rescale_relu(static_cast<A>(gradient.value[i]), static_cast<A>(x.value[i]),
                                                       static_cast<A>(x_ref.value[i]), tolerance));
      }
    } else {
      const auto y = load<Width>(values.y, element);
      const auto y_ref = load<Width>(values.y_ref, element);
      const auto slope = load<Width>(values.slope, element);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        product.value[i] = static_cast<G>(fusum::rescale(
            static_cast<A>(gradient.value[i]), static_cast<A>(x.value[i]), static_cast<A>(x_ref.value[i]),
            static_cast<A>(y.value[i]), static_cast<A>(y_ref.value[i]), static_cast<A>(slope.value[i]), tolerance));
      }
    }
    store(products + element, product);
  }
}

// Gradients may be wider than T: the width is what every operand allows.
template <class T, class G, bool Relu>
void launch(const Rescale& call, const Values<T, Relu>& values, bool packs) {
  const Tolerance<Acc<T>> tolerance{static_cast<Acc<T>>(call.absolute), static_cast<Acc<T>>(call.relative)};
  G* products = call.products.mutable_data_ptr<G>();
  const auto fill = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    fill_products<kWidth, T, G, Relu>
        <<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            call.gradients.as<G>(), call.x.as<T>(), call.x_ref.as<T>(), values, products, call.elements, tolerance);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(packs ? call.elements : 1, fill, call.x.as<T>().data, products);
}

template <class T, class G>
void launch(const Rescale& call) {
  constexpr int kWide = 16 / sizeof(T);
  const bool packs =
      packed<kWide>(call.gradients.as<G>()) && packed<kWide>(call.x.as<T>()) && packed<kWide>(call.x_ref.as<T>());
  if (!call.y) {
    launch<T, G, true>(call, {}, packs);
    return;
  }
  const Values<T, false> values{call.y->as<T>(), call.y_ref->as<T>(), call.slope->as<T>()};
  launch<T, G, false>(call, values,
                      packs && packed<kWide>(values.y) && packed<kWide>(values.y_ref) && packed<kWide>(values.slope));
}

at::Tensor rescale(const at::Tensor& gradients, const at::Tensor& x, const at::Tensor& x_ref,
                   const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& y_ref,
                   const std::optional<at::Tensor>& slope, double eps) {
  const c10::cuda::CUDAGuard guard(gradients.device());
  const Rescale call(gradients, x, x_ref, y, y_ref, slope, eps);
  if (call.elements > 0) {
    visit_accumulated(call.dtype, call.products.scalar_type(),
                      [&](auto operand, auto gradient) { launch<decltype(operand), decltype(gradient)>(call); });
  }
  return call.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("rescale", &rescale); }

}  // namespace fusum::cuda

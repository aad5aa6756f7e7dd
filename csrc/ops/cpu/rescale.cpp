#include "math/rescale.h"

#include <torch/library.h>

#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class T, class G>
void fill_given(const Rescale& call, Tolerance<Acc<T>> tolerance) {
  using A = Acc<T>;
  const Broadcast<G> gradients = call.gradients.as<G>();
  const Broadcast<T> operands[] = {call.x.as<T>(), call.x_ref.as<T>(), call.y->as<T>(), call.y_ref->as<T>(),
                                   call.slope->as<T>()};
  G* products = call.products.mutable_data_ptr<G>();
  for_blocks(call.elements, 1, [=](int64_t first, int64_t count) {
    A buffers[6][kBlock];
    const A* x = read(operands[0], first, count, buffers[0]);
    const A* x_ref = read(operands[1], first, count, buffers[1]);
    const A* y = read(operands[2], first, count, buffers[2]);
    const A* y_ref = read(operands[3], first, count, buffers[3]);
    const A* slope = read(operands[4], first, count, buffers[4]);
    const A* gradient = read(gradients, first, count, buffers[5]);
    G* __restrict product = products + first;
    for (int64_t i = 0; i < count; ++i) {
      product[i] = static_cast<G>(fusum::rescale(gradient[i], x[i], x_ref[i], y[i], y_ref[i], slope[i], tolerance));
    }
  });
}

template <class T, class G>
void fill_relu(const Rescale& call, Tolerance<Acc<T>> tolerance) {
  using A = Acc<T>;
  const Broadcast<G> gradients = call.gradients.as<G>();
  const Broadcast<T> examples = call.x.as<T>();
  const Broadcast<T> references = call.x_ref.as<T>();
  G* products = call.products.mutable_data_ptr<G>();
  for_blocks(call.elements, 1, [=](int64_t first, int64_t count) {
    A buffers[3][kBlock];
    const A* x = read(examples, first, count, buffers[0]);
    const A* x_ref = read(references, first, count, buffers[1]);
    const A* gradient = read(gradients, first, count, buffers[2]);
    G* __restrict product = products + first;
    for (int64_t i = 0; i < count; ++i) {
      product[i] = static_cast<G>(rescale_relu(gradient[i], x[i], x_ref[i], tolerance));
    }
  });
}

at::Tensor rescale(const at::Tensor& gradients, const at::Tensor& x, const at::Tensor& x_ref,
                   const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& y_ref,
                   const std::optional<at::Tensor>& slope, double eps) {
  const Rescale call(gradients, x, x_ref, y, y_ref, slope, eps);
  visit_accumulated(call.dtype, call.products.scalar_type(), [&](auto operand, auto gradient) {
    using T = decltype(operand);
    using G = decltype(gradient);
    const Tolerance<Acc<T>> tolerance{static_cast<Acc<T>>(call.absolute), static_cast<Acc<T>>(call.relative)};
    call.y ? fill_given<T, G>(call, tolerance) : fill_relu<T, G>(call, tolerance);
  });
  return call.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("rescale", &rescale); }

}  // namespace fusum::cpu

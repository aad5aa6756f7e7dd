#include <torch/library.h>

#include "math/path.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class T, class G>
void fill_products(const TimesChange& call) {
  using A = Acc<T>;
  const T* inputs = call.inputs.const_data_ptr<T>();
  const G* gradients = call.gradients.const_data_ptr<G>();
  const BaseRows<T> rows = call.base.rows<T>();
  G* products = call.products.mutable_data_ptr<G>();
  for_blocks(call.elements, 1, [=, &call](int64_t first, int64_t count) {
    A buffer[kBlock];
    const A* base = read(rows, first, count, call.row, buffer);
    const T* input = inputs + first;
    const G* gradient = gradients + first;
    G* __restrict product = products + first;
    for (int64_t i = 0; i < count; ++i) {
      product[i] = static_cast<G>(fusum::times_change(static_cast<A>(gradient[i]), static_cast<A>(input[i]), base[i]));
    }
  });
}

at::Tensor times_change(const at::Tensor& gradients, const at::Tensor& inputs, const at::Tensor& baselines,
                        const std::optional<at::Tensor>& index) {
  const TimesChange call(gradients, inputs, baselines, index);
  check_range("index", call.base.index, call.base.count);
  visit_pair(inputs.scalar_type(), gradients.scalar_type(),
             [&](auto input, auto gradient) { fill_products<decltype(input), decltype(gradient)>(call); });
  return call.products;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("times_change", &times_change); }

}  // namespace fusum::cpu

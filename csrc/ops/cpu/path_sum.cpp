#include <torch/library.h>

#include "math/path.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class A, class G>
void add_points(const PathSum& call) {
  A* total = call.total.work.mutable_data_ptr<A>();
  const G* gradients = call.gradients.const_data_ptr<G>();
  const double* weights = call.weights.const_data_ptr<double>();
  for_blocks(call.elements, call.nodes, [=, &call](int64_t first, int64_t count) {
    A* __restrict sum = total + first;
    for (int64_t node = 0; node < call.nodes; ++node) {
      const A weight = static_cast<A>(weights[node]);
      const G* __restrict gradient = gradients + offset_of(node, call.elements) + first;
      for (int64_t i = 0; i < count; ++i) {
        sum[i] = path_sum(sum[i], weight, static_cast<A>(gradient[i]));
      }
    }
  });
}

void path_sum(const at::Tensor& total, const at::Tensor& gradients, const at::Tensor& weights) {
  const PathSum call(total, gradients, weights);
  visit_total(total.scalar_type(), [&](auto sum) {
    visit_float(gradients.scalar_type(), [&](auto part) { add_points<decltype(sum), decltype(part)>(call); });
  });
  call.total.store();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("path_sum", &path_sum); }

}  // namespace fusum::cpu

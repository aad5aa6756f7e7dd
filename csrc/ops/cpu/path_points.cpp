#include <torch/library.h>

#include "math/path.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class T>
void fill_points(const PathPoints& call) {
  using A = Acc<T>;
  const T* inputs = call.inputs.const_data_ptr<T>();
  const double* alphas = call.alphas.const_data_ptr<double>();
  const BaseRows<T> rows = call.base.rows<T>();
  T* points = call.points.mutable_data_ptr<T>();
  for_blocks(call.elements, call.nodes, [=, &call](int64_t first, int64_t count) {
    A base_buffer[kBlock];
    A change[kBlock];
    const A* base = read(rows, first, count, call.row, base_buffer);
    const A* input = read(inputs + first, count, change);
    for (int64_t i = 0; i < count; ++i) {
      change[i] = input[i] - base[i];
    }
    for (int64_t node = 0; node < call.nodes; ++node) {
      const A alpha = static_cast<A>(alphas[node]);
      T* __restrict point = points + offset_of(node, call.elements) + first;
      for (int64_t i = 0; i < count; ++i) {
        point[i] = static_cast<T>(path_point(base[i], change[i], alpha));
      }
    }
  });
}

at::Tensor path_points(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                       const at::Tensor& alphas) {
  const PathPoints call(inputs, baselines, index, alphas);
  check_range("index", call.base.index, call.base.count);
  visit_float(inputs.scalar_type(), [&](auto type) { fill_points<decltype(type)>(call); });
  return call.points;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("path_points", &path_points); }

}  // namespace fusum::cpu

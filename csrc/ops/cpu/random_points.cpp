#include <torch/library.h>

#include "math/path.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class T>
void fill_points(const RandomPoints& call) {
  using A = Acc<T>;
  const T* inputs = call.inputs.const_data_ptr<T>();
  const A* coefficients = call.coefficients.const_data_ptr<A>();
  const BaseRows<T> rows = call.base.rows<T>();
  T* points = call.points.mutable_data_ptr<T>();
  for_blocks(call.elements, 1, [=, &call](int64_t first, int64_t count) {
    A buffer[kBlock];
    const A* base = read(rows, first, count, call.row, buffer);
    for_row_parts(first, count, call.row, [&](int64_t row, int64_t, int64_t place, int64_t part) {
      const A coefficient = coefficients[row];
      const T* input = inputs + first + place;
      T* __restrict point = points + first + place;
#pragma GCC ivdep
      for (int64_t i = 0; i < part; ++i) {
        point[i] = static_cast<T>(random_point(static_cast<A>(input[i]), base[place + i], coefficient));
      }
    });
  });
}

at::Tensor random_points(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                         const at::Tensor& coefficients) {
  const RandomPoints call(inputs, baselines, index, coefficients);
  check_range("index", call.base.index, call.base.count);
  visit_float(inputs.scalar_type(), [&](auto type) { fill_points<decltype(type)>(call); });
  return call.points;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("random_points", &random_points); }

}  // namespace fusum::cpu

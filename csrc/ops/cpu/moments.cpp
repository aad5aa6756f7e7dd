#include <torch/library.h>

#include "math/samples.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class A, class V>
void add_rows(const Moments& call, int64_t samples, int64_t start) {
  A* totals = call.total.work.mutable_data_ptr<A>();
  A* squares = call.squares ? call.squares->work.mutable_data_ptr<A>() : nullptr;
  const V* values = call.values.const_data_ptr<V>();
  for_blocks(call.elements, samples, [=, &call](int64_t begin, int64_t count) {
    const int64_t first = call.first + begin;
    for_row_parts(first, count, call.row, [&](int64_t example, int64_t element, int64_t place, int64_t part) {
      const Rows rows = rows_of(example, start, samples, call.count);
      A* __restrict total = totals + first + place;
      A* __restrict square = squares ? squares + first + place : nullptr;
      for (int64_t row = rows.first; row < rows.last; ++row) {
        const V* __restrict value = values + offset_of(row, call.row) + element;
        if (square) {
#pragma GCC ivdep
          for (int64_t i = 0; i < part; ++i) {
            const A number = static_cast<A>(value[i]);
            total[i] = first_moment(total[i], number);
            square[i] = second_moment(square[i], number);
          }
        } else {
#pragma GCC ivdep
          for (int64_t i = 0; i < part; ++i) {
            total[i] = first_moment(total[i], static_cast<A>(value[i]));
          }
        }
      }
    });
  });
}

void moments(const at::Tensor& total, const std::optional<at::Tensor>& squares, const at::Tensor& values,
             int64_t samples, int64_t start) {
  const Moments call(total, squares, values, samples, start);
  visit_total(total.scalar_type(), [&](auto sum) {
    visit_float(values.scalar_type(),
                [&](auto value) { add_rows<decltype(sum), decltype(value)>(call, samples, start); });
  });
  call.store();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("moments", &moments); }

}  // namespace fusum::cpu

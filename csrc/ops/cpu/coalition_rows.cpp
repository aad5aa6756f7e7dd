#include <torch/library.h>

#include <type_traits>
#include <vector>

#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

// All ones is the input, all zeros the base: no branch, which no processor foresees where coalitions are random.
template <class T>
T choose(T mask, T input, T base) {
  return static_cast<T>(base ^ ((input ^ base) & mask));
}

TwoWords choose(uint64_t mask, TwoWords input, TwoWords base) {
  return {choose(mask, input.low, base.low), choose(mask, input.high, base.high)};
}

template <class T>
void fill_rows(const CoalitionRows& call) {
  using Mask = std::conditional_t<std::is_same_v<T, TwoWords>, uint64_t, T>;
  const auto from = call.as<T>();
  T* rows = static_cast<T*>(call.rows.mutable_data_ptr());
  const bool scalar = from.base.element_step == 0;
  const std::vector<T> repeated(scalar ? kBlock : 0, scalar ? *from.base.data : T{});
  for_blocks(call.elements, 1, [=, &repeated](int64_t first, int64_t count) {
    Mask chosen[kBlock];
    for_row_parts(first, count, from.row_elements, [&](int64_t row, int64_t element, int64_t place, int64_t part) {
      const int32_t* feature = from.feature_at(row, element);
      const bool* members = from.coalition_of(row);
#pragma GCC ivdep
#pragma GCC unroll 8
      for (int64_t i = 0; i < part; ++i) {
        chosen[i] = static_cast<Mask>(-static_cast<Mask>(members[feature[i]]));
      }
      const T* input = from.input_at(row, element);
      const T* base = scalar ? repeated.data() : from.base.at(row, element);
      T* __restrict target = rows + first + place;
#pragma GCC ivdep
      for (int64_t i = 0; i < part; ++i) {
        target[i] = choose(chosen[i], input[i], base[i]);
      }
    });
  });
}

at::Tensor coalition_rows(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                          const at::Tensor& features, const at::Tensor& coalitions, const at::Tensor& which,
                          const at::Tensor& examples) {
  const CoalitionRows call(inputs, baselines, index, features, coalitions, which, examples);
  check_range("examples", call.examples, inputs.size(0));
  check_range("which", call.which, coalitions.size(0));
  check_range<int32_t>("features", call.features, coalitions.size(1));
  check_range("index", call.base.index, call.base.count);
  visit_bits(inputs.element_size(), [&](auto bits) { fill_rows<decltype(bits)>(call); });
  return call.rows;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("coalition_rows", &coalition_rows); }

}  // namespace fusum::cpu

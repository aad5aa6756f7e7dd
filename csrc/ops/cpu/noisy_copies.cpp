#include <torch/library.h>

#include "math/samples.h"
#include "ops/cpu/blocks.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

template <class T, class N>
void fill_copies(const NoisyCopies& call, double stdev, int64_t samples, int64_t start) {
  using A = Acc<T>;
  const A scale = static_cast<A>(stdev);
  const T* inputs = call.inputs.const_data_ptr<T>();
  const N* noises = call.noise.const_data_ptr<N>();
  T* copies = call.copies.mutable_data_ptr<T>();
  for_blocks(call.elements, 1, [=, &call](int64_t first, int64_t count) {
    // Counted on from row to row: a division for each short row would take longer than the row.
    int64_t example = example_of(first / call.row, start, samples);
    int64_t left = (example + 1) * samples - start - first / call.row;
    for_row_parts(first, count, call.row, [&](int64_t, int64_t element, int64_t place, int64_t part) {
      const T* input = inputs + offset_of(example, call.row) + element;
      const N* noise = noises + first + place;
      T* __restrict copy = copies + first + place;
#pragma GCC ivdep
      for (int64_t i = 0; i < part; ++i) {
        copy[i] = static_cast<T>(noisy_copy(static_cast<A>(input[i]), scale, static_cast<A>(noise[i])));
      }
      if (--left == 0) {
        ++example;
        left = samples;
      }
    });
  });
}

at::Tensor noisy_copies(const at::Tensor& inputs, const at::Tensor& noise, double stdev, int64_t samples,
                        int64_t start) {
  const NoisyCopies call(inputs, noise, samples, start);
  visit_pair(inputs.scalar_type(), noise.scalar_type(),
             [&](auto input, auto unit) { fill_copies<decltype(input), decltype(unit)>(call, stdev, samples, start); });
  return call.copies;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("noisy_copies", &noisy_copies); }

}  // namespace fusum::cpu

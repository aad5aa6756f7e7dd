#include <torch/library.h>

#include "math/samples.h"
#include "ops/cuda/launch.cuh"
#include "ops/operands.h"

namespace fusum::cuda {
namespace {

// A thread owns its elements of the sums, so each is summed in the order of the rows.
template <int Width, class A, class V>
__global__ void add_rows(A* totals, A* squares, const V* values, int64_t first, int64_t elements, int64_t row_elements,
                         int64_t samples, int64_t start, int64_t count) {
  for (int64_t step = first_step(); step < elements / Width; step += stride()) {
    const int64_t element = first + step * Width;
    const Rows rows = rows_of(element / row_elements, start, samples, count);
    auto total = load<Width>(static_cast<const A*>(totals) + element);
    auto square = squares ? load<Width>(static_cast<const A*>(squares) + element) : Pack<A, Width>{};
#pragma unroll 4
    for (int64_t row = rows.first; row < rows.last; ++row) {
      const auto value = load<Width>(values + offset_of(row, row_elements) + element % row_elements);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        total.value[i] = first_moment(total.value[i], static_cast<A>(value.value[i]));
        square.value[i] = second_moment(square.value[i], static_cast<A>(value.value[i]));
      }
    }
    store(totals + element, total);
    if (squares) {
      store(squares + element, square);
    }
  }
}

template <class A, class V>
void launch(const Moments& call, int64_t samples, int64_t start) {
  A* totals = call.total.work.mutable_data_ptr<A>();
  A* squares = call.squares ? call.squares->work.mutable_data_ptr<A>() : nullptr;
  const V* values = call.values.const_data_ptr<V>();
  const auto add = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    add_rows<kWidth><<<blocks_for(call.elements / kWidth), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        totals, squares, values, call.first, call.elements, call.row, samples, start, call.count);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  with_width(call.row, add, values, totals, squares);
}

void moments(const at::Tensor& total, const std::optional<at::Tensor>& squares, const at::Tensor& values,
             int64_t samples, int64_t start) {
  const c10::cuda::CUDAGuard guard(total.device());
  const Moments call(total, squares, values, samples, start);
  if (call.elements > 0) {
    visit_total(total.scalar_type(), [&](auto sum) {
      visit_float(values.scalar_type(),
                  [&](auto value) { launch<decltype(sum), decltype(value)>(call, samples, start); });
    });
    call.store();
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("moments", &moments); }

}  // namespace fusum::cuda

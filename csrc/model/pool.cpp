#include "model/pool.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/Pool.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "model/bare.h"

namespace fusum::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Windows along one dimension.
struct Windows {
  int64_t size, stride, padding, dilation, input, output;

  // Where a window begins inside the input, and where it ends.
  int64_t start(int64_t window) const {
    const int64_t at = window * stride - padding;
    return at >= 0 ? at : at + (-at + dilation - 1) / dilation * dilation;
  }
  int64_t end(int64_t window) const { return std::min(input, window * stride - padding + span()); }
  // How far a window reaches.
  int64_t span() const { return (size - 1) * dilation + 1; }
};

struct Pool {
  Windows rows, columns;
  bool ceil;
};

// Memory for the rows of several planes that the windows of one row reach, and for what comes of them.
struct Scratch {
  float* rows;
  float* largest;
  int32_t* places;
};

namespace narrow {
#define LANES 4
#include "model/pool_lanes.h"
#undef LANES
}  // namespace narrow

// The compiler is told what a processor has, function by function: which one is called is up to what it does have.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FUSUM_WIDER
#pragma GCC push_options
#pragma GCC target("avx2")
namespace wide {
#define LANES 8
#include "model/pool_lanes.h"
#undef LANES
}  // namespace wide
#pragma GCC pop_options
#endif

// How many planes are pooled at once here, and by what.
struct Pooling {
  int64_t lanes;
  void (*run)(const Pool&, const Scratch&, int64_t, const float*, float*, int64_t*);
};

Pooling pooling() {
#ifdef FUSUM_WIDER
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) {
    return {8, &wide::pool_planes};
  }
#endif
  return {4, &narrow::pool_planes};
}

std::tuple<Tensor, Tensor> pooled(const Tensor& x, const Pool& pool) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const int64_t count = x.size(0) * x.size(1);
  const int64_t area = x.size(2) * x.size(3);
  const int64_t windows = pool.rows.output * pool.columns.output;
  const Tensor y = at::empty({x.size(0), x.size(1), pool.rows.output, pool.columns.output}, x.options());
  const Tensor indices = at::empty(y.sizes(), x.options().dtype(at::kLong));
  const auto* from = x.const_data_ptr<float>();
  auto* to = y.mutable_data_ptr<float>();
  auto* places = indices.mutable_data_ptr<int64_t>();
  const auto [lanes, run] = pooling();
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / (lanes * area));
  at::parallel_for(0, (count + lanes - 1) / lanes, grain, [&, lanes = lanes, run = run](int64_t begin, int64_t end) {
    std::vector<float> rows(pool.rows.span() * pool.columns.input * lanes);
    std::vector<float> largest(pool.columns.output * lanes);
    std::vector<int32_t> at(pool.columns.output * lanes);
    for (int64_t plane = begin * lanes; plane < std::min(count, end * lanes); plane += lanes) {
      run(pool, {rows.data(), largest.data(), at.data()}, std::min(lanes, count - plane), from + plane * area,
          to + plane * windows, places + plane * windows);
    }
  });
  return {y, indices};
}

struct MaxPool : torch::autograd::Function<MaxPool> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Pool& pool) {
    auto [y, indices] = pooled(x, pool);
    ctx->save_for_backward({x, indices});
    ctx->mark_non_differentiable({indices});
    ctx->set_materialize_grads(false);
    const auto& [r, c] = std::tie(pool.rows, pool.columns);
    ctx->saved_data["settings"] =
        std::vector<int64_t>{r.size, c.size, r.stride, c.stride, r.padding, c.padding, r.dilation, c.dilation};
    ctx->saved_data["ceil"] = pool.ceil;
    return {y, indices};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    if (!gradients[0].defined()) {
      return {Tensor(), Tensor()};
    }
    const auto saved = ctx->get_saved_variables();
    const auto s = ctx->saved_data["settings"].toIntVector();
    return {at::max_pool2d_with_indices_backward(gradients[0], saved[0], {s[0], s[1]}, {s[2], s[3]}, {s[4], s[5]},
                                                 {s[6], s[7]}, ctx->saved_data["ceil"].toBool(), saved[1]),
            Tensor()};
  }
};

// The windows of a dimension; none if torch is to say what is wrong.
std::optional<Windows> windows_of(const torch::jit::Stack& stack, const Tensor& x, int64_t dim, bool ceil) {
  const auto number = [&](size_t i, int64_t otherwise) {
    const auto given = both(torch::jit::peek(stack, i, 6));
    return given.empty() ? otherwise : given.size() == 2 ? given[dim] : 0;
  };
  Windows found{number(1, 0), 0, number(3, -1), number(4, 0), x.size(2 + dim), 0};
  found.stride = number(2, found.size);
  if (found.size < 1 || found.stride < 1 || found.dilation < 1 || found.padding < 0 || 2 * found.padding > found.size) {
    return {};
  }
  found.output = at::native::pooling_output_shape<int64_t>(found.input, found.size, found.padding, found.stride,
                                                           found.dilation, ceil);
  return found.output > 0 ? std::optional<Windows>(found) : std::nullopt;
}

}  // namespace

bool pool_faster(torch::jit::Stack* stack) {
  const Tensor x = torch::jit::peek(*stack, 0, 6).toTensor();
  const bool ceil = torch::jit::peek(*stack, 5, 6).toBool();
  const bool fits = is_bare(x) && x.dim() == 4 && x.scalar_type() == at::kFloat && x.is_contiguous() && x.numel() > 0 &&
                    x.size(2) * x.size(3) < std::numeric_limits<int32_t>::max();
  if (!fits || x.suggest_memory_format() != at::MemoryFormat::Contiguous || !goes_back_at_most(x)) {
    return false;
  }
  const auto rows = windows_of(*stack, x, 0, ceil);
  const auto columns = windows_of(*stack, x, 1, ceil);
  if (!rows || !columns) {
    return false;
  }
  const Pool pool{*rows, *columns, ceil};
  variable_list found;
  if (x.requires_grad() && at::GradMode::is_enabled()) {
    found = MaxPool::apply(x, pool);
  } else {
    const auto [y, indices] = pooled(x, pool);
    found = {y, indices};
  }
  torch::jit::drop(*stack, 6);
  torch::jit::push(*stack, found[0], found[1]);
  return true;
}

}  // namespace fusum::model

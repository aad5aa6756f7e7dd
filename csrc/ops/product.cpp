#include "ops/product.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <utility>

namespace fusum {
namespace {

using at::Tensor;
using Scalars = c10::List<std::optional<at::Scalar>>;
using Linear = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view, Scalars,
                      std::optional<std::string_view>);

// Of smaller products, calling oneDNN takes what it gains.
constexpr int64_t kLeastOperations = 1 << 22;

const std::optional<c10::OperatorHandle>& linear() {
  static const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return found;
}

bool& spared() {
  static thread_local bool on = false;
  return on;
}

}  // namespace

bool is_onednn_faster() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool faster = __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f") && linear().has_value();
  return faster && !spared() && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

bool is_large_product(int64_t rows, int64_t inner, int64_t columns) {
  return 2 * rows * inner * columns >= kLeastOperations;
}

bool spare_onednn(bool spare) { return std::exchange(spared(), spare); }

Tensor onednn_product(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  static const auto call = linear()->typed<Linear>();
  return call.call(x, weight, bias, "none", Scalars(), "");
}

}  // namespace fusum

// The op rescale, called from C++.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

namespace fusum {

inline at::Tensor call_rescale(const at::Tensor& gradients, const at::Tensor& x, const at::Tensor& x_ref,
                               const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& y_ref,
                               const std::optional<at::Tensor>& slope, double eps) {
  using Rescale = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, double);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusum::rescale", "").typed<Rescale>();
  return op.call(gradients, x, x_ref, y, y_ref, slope, eps);
}

inline at::Tensor call_rescale_relu(const at::Tensor& gradients, const at::Tensor& x, const at::Tensor& x_ref,
                                    double eps) {
  return call_rescale(gradients, x, x_ref, std::nullopt, std::nullopt, std::nullopt, eps);
}

}  // namespace fusum

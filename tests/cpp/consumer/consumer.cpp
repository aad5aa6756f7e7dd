// The smallest program on the installed library: finds an op by name and a formula by its header.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <iostream>

#include "math/path.h"

int main() {
  using Signature =
      at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&);
  auto path_points = c10::Dispatcher::singleton().findSchemaOrThrow("fusum::path_points", "").typed<Signature>();
  auto points = path_points.call(at::ones({2, 3}), at::zeros({}), std::nullopt, at::tensor({0.25, 0.5}, at::kDouble));
  auto first = fusum::path_point(/*base=*/0.0, /*change=*/1.0, /*alpha=*/0.25);
  std::cout << points << "\n";
  return at::equal(points.sum(1), at::tensor({3 * first, 3 * first, 1.5, 1.5}, at::kFloat)) ? 0 : 1;
}

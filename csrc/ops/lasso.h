// The operands of the op lasso, checked, and its work space, the same for every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "math/lasso.h"
#include "ops/checks.h"

namespace fusum {

struct Lasso {
  Lasso(const at::Tensor& rows, const at::Tensor& given, const at::Tensor& weighted, double alpha) {
    FUSUM_CHECK(rows.dim() == 3 && !rows.is_complex(), "rows", rows, "real numbers of three dimensions");
    check_samples("values", given, rows);
    check_samples("weights", weighted, rows);
    TORCH_CHECK_VALUE(alpha > 0, "alpha: got ", alpha, "; expected above 0");
    examples = rows.size(0);
    samples = rows.size(1);
    features = rows.size(2);
    columns = at::empty({examples, features, samples}, given.options()).copy_(rows.mT());
    values = given.contiguous();
    weights = weighted.contiguous();
    scratch = at::empty({2, examples * (samples + features)}, given.options());
    found = at::zeros({examples, features}, given.options());
    converged = at::empty({examples}, given.options().dtype(at::kBool));
  }

  LassoData data() const {
    double* by_sample = scratch.mutable_data_ptr<double>();
    double* by_feature = by_sample + 2 * examples * samples;
    return {columns.mutable_data_ptr<double>(),
            values.const_data_ptr<double>(),
            weights.const_data_ptr<double>(),
            by_sample,
            by_sample + examples * samples,
            by_feature,
            by_feature + examples * features,
            found.mutable_data_ptr<double>(),
            samples,
            features};
  }

  int64_t examples;
  int64_t samples;
  int64_t features;
  at::Tensor columns;
  at::Tensor values;
  at::Tensor weights;
  at::Tensor scratch;
  at::Tensor found;
  at::Tensor converged;

 private:
  static void check_samples(const char* name, const at::Tensor& tensor, const at::Tensor& rows) {
    FUSUM_CHECK(tensor.sizes() == rows.sizes().slice(0, 2), name, tensor, "shape ", rows.sizes().slice(0, 2));
    check_dtype(name, tensor, at::kDouble, at::kDouble);
    check_device(name, tensor, rows);
  }
};

}  // namespace fusum

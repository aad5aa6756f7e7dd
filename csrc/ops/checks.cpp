#include "ops/checks.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

namespace fusum {

using at::MemoryFormat;
using at::ScalarType;
using at::Tensor;

std::string word(ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

ScalarType accumulation(ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

MemoryFormat format_of(const Tensor& leader) {
  if (leader.is_contiguous()) {
    return MemoryFormat::Contiguous;
  }
  if (leader.dim() == 4 && leader.is_contiguous(MemoryFormat::ChannelsLast)) {
    return MemoryFormat::ChannelsLast;
  }
  if (leader.dim() == 5 && leader.is_contiguous(MemoryFormat::ChannelsLast3d)) {
    return MemoryFormat::ChannelsLast3d;
  }
  return MemoryFormat::Contiguous;
}

int64_t row_elements(const Tensor& rows) { return c10::multiply_integers(rows.sizes().slice(1)); }

Tensor rows_like(const Tensor& leader, int64_t count, ScalarType dtype, MemoryFormat format) {
  at::DimVector sizes(leader.sizes());
  sizes[0] = count;
  return at::empty(sizes, leader.options().dtype(dtype), format);
}

void check_floats(const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  FUSUM_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, name, tensor,
              "float64, float32, bfloat16 or float16");
}

void check_dims(const char* name, const Tensor& rows) {
  FUSUM_CHECK(rows.dim() > 0, name, rows, "at least one dimension");
}

void check_rows(const char* name, const Tensor& rows) {
  check_dims(name, rows);
  check_floats(name, rows);
}

void check_total(const char* name, const Tensor& total) {
  check_rows(name, total);
  FUSUM_CHECK(total.scalar_type() == accumulation(total.scalar_type()), name, total, "float64 or float32");
}

void check_dtype(const char* name, const Tensor& tensor, ScalarType allowed, ScalarType also) {
  const ScalarType dtype = tensor.scalar_type();
  FUSUM_CHECK(dtype == allowed || dtype == also, name, tensor, word(allowed),
              allowed == also ? "" : " or " + word(also));
}

void check_device(const char* name, const Tensor& tensor, const Tensor& leader) {
  FUSUM_CHECK(tensor.device() == leader.device(), name, tensor, "a tensor on ", leader.device());
}

void check_like(const char* name, const Tensor& tensor, int64_t count, const Tensor& leader) {
  FUSUM_CHECK(
      tensor.dim() == leader.dim() && tensor.size(0) == count && tensor.sizes().slice(1) == leader.sizes().slice(1),
      name, tensor, count, " rows of shape ", leader.sizes().slice(1));
  check_device(name, tensor, leader);
}

void check_column(const char* name, const Tensor& column, int64_t rows, const Tensor& leader) {
  FUSUM_CHECK(column.dim() == 1 && column.size(0) == rows, name, column, "shape [", rows, "]");
  check_device(name, column, leader);
}

void check_index(const char* name, const Tensor& index, int64_t rows, const Tensor& leader) {
  check_column(name, index, rows, leader);
  check_dtype(name, index, at::kLong, at::kLong);
}

}  // namespace fusum

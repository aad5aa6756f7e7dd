// What the operands of an op must be, said in the words of Python, and the form of its results.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#define FUSUM_CHECK(condition, name, tensor, ...)                                                                  \
  TORCH_CHECK_VALUE(condition, name, ": got ", fusum::word((tensor).scalar_type()), " ", (tensor).sizes(), " on ", \
                    (tensor).device(), "; expected ", __VA_ARGS__)

namespace fusum {

// The name of a dtype in Python.
std::string word(at::ScalarType dtype);

at::ScalarType accumulation(at::ScalarType dtype);

// The format of an output that follows leader: channels last only where leader is, and is not plainly dense.
at::MemoryFormat format_of(const at::Tensor& leader);

int64_t row_elements(const at::Tensor& rows);

at::Tensor rows_like(const at::Tensor& leader, int64_t count, at::ScalarType dtype, at::MemoryFormat format);

void check_floats(const char* name, const at::Tensor& tensor);

void check_dims(const char* name, const at::Tensor& rows);

void check_rows(const char* name, const at::Tensor& rows);

void check_total(const char* name, const at::Tensor& total);

void check_dtype(const char* name, const at::Tensor& tensor, at::ScalarType allowed, at::ScalarType also);

void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& leader);

// tensor is [count, ...] where leader is [B, ...].
void check_like(const char* name, const at::Tensor& tensor, int64_t count, const at::Tensor& leader);

void check_column(const char* name, const at::Tensor& column, int64_t rows, const at::Tensor& leader);

void check_index(const char* name, const at::Tensor& index, int64_t rows, const at::Tensor& leader);

}  // namespace fusum

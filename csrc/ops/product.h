// Products of matrices by the faster of the libraries that torch comes with.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace fusum {

// Whether products are faster by oneDNN than by MKL, in this thread: they take half the time on AMD's processors with
// AVX-512, of which MKL makes no use there.
bool is_onednn_faster();

// Whether x [rows, inner] times the transpose of weight [columns, inner] is then: there has to be enough to do, too.
bool is_large_product(int64_t rows, int64_t inner, int64_t columns);

// That product, of float32 matrices, by oneDNN; plus bias [columns]. It has no graph.
at::Tensor onednn_product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// Whether this thread is to do without oneDNN, for the sake of memory; returns whether it was.
bool spare_onednn(bool spared);

}  // namespace fusum

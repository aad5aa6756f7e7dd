#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "ops/cuda/launch.cuh"
#include "ops/lasso.h"

namespace fusum::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffff;

// A team of one warp: the sums of a descent wait for each other, so what counts is how soon one is known to all. The
// two lanes of each exchange add the same two numbers, so that all lanes end with the same bits.
struct Warp {
  int lane;

  template <class Term>
  __device__ double sum(int64_t count, const Term& term) const {
    double sum = 0;
    for (int64_t i = lane; i < count; i += kWarp) {
      sum += term(i);
    }
    __syncwarp();
    for (int step = kWarp / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kAll, sum, step);
    }
    return sum;
  }

  template <class Body>
  __device__ void each(int64_t count, const Body& body) const {
    __syncwarp();
    for (int64_t i = lane; i < count; i += kWarp) {
      body(i);
    }
  }
};

__global__ void fit(LassoData data, bool* converged, int64_t examples, double alpha, double tol, int64_t max_iter) {
  const Warp warp{static_cast<int>(threadIdx.x)};
  for (int64_t example = blockIdx.x; example < examples; example += gridDim.x) {
    converged[example] = LassoFit(warp, data.of(example), alpha, tol).run(max_iter);
  }
}

std::tuple<at::Tensor, at::Tensor> lasso(const at::Tensor& rows, const at::Tensor& values, const at::Tensor& weights,
                                         double alpha, double tol, int64_t max_iter) {
  const c10::cuda::CUDAGuard guard(rows.device());
  const Lasso call(rows, values, weights, alpha);
  if (call.examples > 0) {
    const auto blocks = static_cast<unsigned>(std::min(call.examples, most_blocks()));
    fit<<<blocks, kWarp, 0, c10::cuda::getCurrentCUDAStream()>>>(call.data(), call.converged.mutable_data_ptr<bool>(),
                                                                 call.examples, alpha, tol, max_iter);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {call.found, call.converged};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CUDA, m) { m.impl("lasso", &lasso); }

}  // namespace fusum::cuda

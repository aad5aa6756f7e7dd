#include "ops/lasso.h"

#include <torch/library.h>

#include <tuple>

#include "ops/cpu/blocks.h"

namespace fusum::cpu {
namespace {

// A team of one thread. Eight sums at a time are vector code, the same one for every processor.
struct Alone {
  template <class Term>
  double sum(int64_t count, const Term& term) const {
    constexpr int64_t kSums = 8;
    double sums[kSums] = {};
    const int64_t whole = count - count % kSums;
    for (int64_t i = 0; i < whole; i += kSums) {
      for (int64_t k = 0; k < kSums; ++k) {
        sums[k] += term(i + k);
      }
    }
    double rest = 0;
    for (int64_t i = whole; i < count; ++i) {
      rest += term(i);
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest;
  }

  template <class Body>
  void each(int64_t count, const Body& body) const {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      body(i);
    }
  }
};

std::tuple<at::Tensor, at::Tensor> lasso(const at::Tensor& rows, const at::Tensor& values, const at::Tensor& weights,
                                         double alpha, double tol, int64_t max_iter) {
  const Lasso call(rows, values, weights, alpha);
  const LassoData data = call.data();
  bool* converged = call.converged.mutable_data_ptr<bool>();
  const int64_t grain = kGrain / (call.samples * call.features + 1) + 1;
  at::parallel_for(0, call.examples, grain, [&](int64_t begin, int64_t end) {
    vectorised([&] {
      for (int64_t example = begin; example < end; ++example) {
        converged[example] = LassoFit(Alone(), data.of(example), alpha, tol).run(max_iter);
      }
    });
  });
  return {call.found, call.converged};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("lasso", &lasso); }

}  // namespace fusum::cpu

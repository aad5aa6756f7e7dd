#include "model/linear.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <optional>

#include "model/bare.h"
#include "ops/product.h"

namespace fusum::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The last dimension of x times the transpose of weight.
Tensor multiplied(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return onednn_product(x.reshape({-1, weight.size(1)}), weight, bias).view(sizes);
}

Tensor as_matrix(const Tensor& x) { return x.reshape({-1, x.size(-1)}); }

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["learns_bias"] = bias && bias->requires_grad();
    ctx->set_materialize_grads(false);
    return multiplied(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor& g = gradients[0];
    variable_list found(3);
    if (!g.defined()) {
      return found;
    }
    const auto saved = ctx->get_saved_variables();
    const Tensor& weight = saved[1];
    if (ctx->needs_input_grad(0)) {
      const bool plain = is_bare(g) && !at::GradMode::is_enabled();  // else it is batched, or goes back once more
      found[0] = plain ? multiplied(g, weight.t(), {}) : at::matmul(g, weight);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = as_matrix(g).t().mm(as_matrix(saved[0]));
    }
    if (ctx->saved_data["learns_bias"].toBool() && ctx->needs_input_grad(2)) {
      found[2] = as_matrix(g).sum(0);
    }
    return found;
  }
};

bool is_float(const Tensor& x) { return is_bare(x) && x.scalar_type() == at::kFloat; }

}  // namespace

bool multiply_faster(torch::jit::Stack* stack) {
  const Tensor x = torch::jit::peek(*stack, 0, 3).toTensor();
  const Tensor weight = torch::jit::peek(*stack, 1, 3).toTensor();
  const auto bias = optional_tensor(torch::jit::peek(*stack, 2, 3));
  const bool fits = is_float(x) && is_float(weight) && x.dim() > 0 && weight.dim() == 2 && x.numel() > 0 &&
                    x.size(-1) == weight.size(1) &&
                    (!bias || (is_float(*bias) && bias->dim() == 1 && bias->size(0) == weight.size(0)));
  if (!fits || !is_onednn_faster() || !is_large_product(x.numel() / weight.size(1), weight.size(1), weight.size(0)) ||
      at::autocast::is_autocast_enabled(at::kCPU)) {
    return false;
  }
  if (!goes_back_at_most(x) || !goes_back_at_most(weight) || (bias && !goes_back_at_most(*bias))) {
    return false;
  }
  const Tensor y = torch::autograd::compute_requires_grad(x, weight, bias) ? Linear::apply(x, weight, bias)
                                                                           : multiplied(x, weight, bias);
  torch::jit::drop(*stack, 3);
  torch::jit::push(*stack, y);
  return true;
}

}  // namespace fusum::model

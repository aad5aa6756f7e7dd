#include "model/convolve.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <optional>
#include <vector>

#include "model/bare.h"
#include "ops/product.h"

namespace fusum::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Pair = std::vector<int64_t>;

// Of more positions, or fewer weights, to lay out patches takes what it gains.
constexpr int64_t kMostPositions = 64;
constexpr int64_t kLeastWeights = 1 << 20;

struct Settings {
  Pair stride, padding, dilation;
};

Pair kernel_of(const Tensor& weight) { return {weight.size(2), weight.size(3)}; }

// Patches of an image as rows [positions, weights of one output], times the transpose of weights.
Tensor convolved(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Settings& s,
                 const Pair& output) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor matrix = weight.flatten(1);
  const Tensor patches = at::im2col(x, kernel_of(weight), s.dilation, s.padding, s.stride);
  const Tensor found = onednn_product(patches[0].t(), matrix, bias);
  return found.t().contiguous().view({1, weight.size(0), output[0], output[1]});
}

Tensor gone_back(const Tensor& gradient, const Tensor& x, const Tensor& weight, const Settings& s) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor found = onednn_product(gradient[0].flatten(1).t(), weight.flatten(1).t(), {});
  return at::col2im(found.t().contiguous().unsqueeze(0), {x.size(2), x.size(3)}, kernel_of(weight), s.dilation,
                    s.padding, s.stride);
}

struct Convolve : torch::autograd::Function<Convolve> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Settings& s, const Pair& output) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["stride"] = s.stride;
    ctx->saved_data["padding"] = s.padding;
    ctx->saved_data["dilation"] = s.dilation;
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->set_materialize_grads(false);
    return convolved(x, weight, bias, s, output);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor& g = gradients[0];
    variable_list found(5);
    if (!g.defined()) {
      return found;
    }
    const auto saved = ctx->get_saved_variables();
    const auto& [x, weight] = std::tie(saved[0], saved[1]);
    const auto pair = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const Settings s{pair("stride"), pair("padding"), pair("dilation")};
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    const bool of_bias = has_bias && ctx->needs_input_grad(2);
    const bool of_weights = ctx->needs_input_grad(1) || of_bias;
    if (!of_weights && is_bare(g) && !at::GradMode::is_enabled()) {
      found[0] = gone_back(g, x, weight, s);
      return found;
    }
    const Pair sizes = {weight.size(0)};
    const auto bias_sizes = has_bias ? at::OptionalIntArrayRef(sizes) : at::OptionalIntArrayRef();
    std::tie(found[0], found[1], found[2]) = at::convolution_backward(
        g, x, weight, bias_sizes, s.stride, s.padding, s.dilation, /*transposed=*/false, /*output_padding=*/{0, 0},
        /*groups=*/1, {ctx->needs_input_grad(0), ctx->needs_input_grad(1), of_bias});
    return found;
  }
};

bool is_plain(const Tensor& x) {
  return is_bare(x) && x.scalar_type() == at::kFloat && x.is_contiguous() && goes_back_at_most(x);
}

// The sizes of the output; none where torch is to say what is wrong.
std::optional<Pair> output_of(const Tensor& x, const Tensor& weight, const Settings& s) {
  Pair found;
  for (size_t i = 0; i < 2; ++i) {
    if (s.stride[i] < 1 || s.dilation[i] < 1 || s.padding[i] < 0) {
      return {};
    }
    const int64_t left = x.size(2 + i) + 2 * s.padding[i] - s.dilation[i] * (weight.size(2 + i) - 1) - 1;
    found.push_back(left < 0 ? 0 : left / s.stride[i] + 1);
  }
  return found[0] > 0 && found[1] > 0 ? std::optional<Pair>(found) : std::nullopt;
}

}  // namespace

bool convolve_faster(torch::jit::Stack* stack, size_t count) {
  const auto operand = [&](size_t i) -> const c10::IValue& { return torch::jit::peek(*stack, i, count); };
  const Tensor x = operand(0).toTensor();
  const Tensor weight = operand(1).toTensor();
  if (weight.dim() != 4 || x.dim() != 4 || weight.numel() < kLeastWeights || operand(6).toBool() ||
      operand(8).toInt() != 1 || x.size(1) != weight.size(1) || !is_onednn_faster()) {
    return false;
  }
  const auto bias = optional_tensor(operand(2));
  const Settings s{both(operand(3)), both(operand(4)), both(operand(5))};
  const bool sized = s.stride.size() == 2 && s.padding.size() == 2 && s.dilation.size() == 2;
  const auto output = sized ? output_of(x, weight, s) : std::nullopt;
  const bool fits = output && x.size(0) == 1 && (*output)[0] * (*output)[1] <= kMostPositions && is_plain(x) &&
                    is_plain(weight) &&
                    (!bias || (is_plain(*bias) && bias->dim() == 1 && bias->size(0) == weight.size(0)));
  if (!fits || at::autocast::is_autocast_enabled(at::kCPU)) {
    return false;
  }
  const Tensor y = torch::autograd::compute_requires_grad(x, weight, bias)
                       ? Convolve::apply(x, weight, bias, s, *output)
                       : convolved(x, weight, bias, s, *output);
  torch::jit::drop(*stack, count);
  torch::jit::push(*stack, y);
  return true;
}

}  // namespace fusum::model

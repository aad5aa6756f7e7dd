#include "model/frozen.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <tuple>
#include <vector>

#include "model/bare.h"

namespace fusum::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What both forms of the operator are given.
struct Operands {
  Tensor x;
  std::optional<Tensor> weight, bias, mean, variance;
  double momentum, eps;
};

struct Normalise : torch::autograd::Function<Normalise> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, const Operands& given) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({weight.value_or(Tensor()), *given.variance});
    ctx->saved_data["eps"] = given.eps;
    ctx->saved_data["tensors"] = 1 + static_cast<int64_t>(weight.has_value()) + static_cast<int64_t>(bias.has_value());
    ctx->set_materialize_grads(false);
    return std::get<0>(at::native_batch_norm(x, weight, bias, given.mean, given.variance, /*training=*/false,
                                             given.momentum, given.eps));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    for (int64_t i = 1; i < ctx->saved_data["tensors"].toInt(); ++i) {
      TORCH_CHECK(!ctx->needs_input_grad(i),
                  "fusum: a model that is explained takes gradients of a batch normalisation's weights itself; run the "
                  "attribution in fusum.config(backend=\"reference\")");
    }
    const Tensor& gradient = gradients[0];
    Tensor found;
    if (gradient.defined()) {
      const auto saved = ctx->get_saved_variables();
      const Tensor deviation = (saved[1] + ctx->saved_data["eps"].toDouble()).rsqrt();
      const Tensor scale = saved[0].defined() ? deviation * saved[0] : deviation;
      std::vector<int64_t> sizes(gradient.dim(), 1);
      sizes[1] = scale.numel();
      found = gradient * scale.view(sizes);
    }
    return {found, Tensor(), Tensor(), Tensor()};
  }
};

// Whether x is as good as a number of the model's own, of the same dtype.
bool is_constant(const std::optional<Tensor>& x, at::ScalarType dtype) {
  return !x || ((!x->requires_grad() || x->is_leaf()) && x->scalar_type() == dtype);
}

}  // namespace

bool normalise_frozen(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const auto operand = [&](size_t i) -> const c10::IValue& { return torch::jit::peek(*stack, i, count); };
  // native_batch_norm says before its last two whether it is in training; the other form never is.
  if (count == 8 && operand(5).toBool()) {
    return false;
  }
  const auto tensor = [&](size_t i) { return optional_tensor(operand(i)); };
  const Operands given = {*tensor(0),
                          tensor(1),
                          tensor(2),
                          tensor(3),
                          tensor(4),
                          operand(count - 2).toDouble(),
                          operand(count - 1).toDouble()};
  const Tensor& x = given.x;
  const bool goes_back = at::GradMode::is_enabled() && x.requires_grad();
  if (!goes_back || !given.mean || !given.variance || !goes_back_at_most(x)) {
    return false;
  }
  for (const auto& t : {given.weight, given.bias, given.mean, given.variance}) {
    if (!is_constant(t, x.scalar_type())) {
      return false;
    }
  }
  const Tensor y = Normalise::apply(x, given.weight, given.bias, given);
  torch::jit::drop(*stack, count);
  const Tensor none = at::empty({0}, x.options());
  torch::jit::push(*stack, y, none, none);
  return true;
}

}  // namespace fusum::model

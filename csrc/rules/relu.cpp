#include <ATen/ATen.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/rescale.h"
#include "rules/rules.h"

namespace fusum::rules {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A tensor of a vmapped backward with its hidden dimension in front, of size 1 where it has none.
at::Tensor opened(const at::Tensor& x) {
  const auto* batched = at::functorch::maybeGetBatchedImpl(x);
  return batched ? batched->value().movedim(batched->bdim(), 0) : x.unsqueeze(0);
}

at::Tensor relu_below(const at::Tensor& x) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return at::relu(x);
}

// DeepLift: the change of the output over the change of the input.
struct Rescale : torch::autograd::Function<Rescale> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& ref,
                            const c10::intrusive_ptr<Tape>& tape, double eps) {
    ctx->save_for_backward({x, ref});
    ctx->saved_data["tape"] = c10::IValue::make_capsule(tape);
    ctx->saved_data["eps"] = eps;
    ctx->set_materialize_grads(false);
    return relu_below(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const at::Tensor& gradient = gradients[0];
    if (!gradient.defined()) {
      return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
    }
    const auto saved = ctx->get_saved_variables();
    const auto tape = c10::static_intrusive_pointer_cast<Tape>(ctx->saved_data["tape"].toCapsule());
    const at::Tensor ref = tape->pair(saved[1], saved[0]);
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto* batched = at::functorch::maybeGetBatchedImpl(gradient);
    const at::Tensor found =
        batched ? at::functorch::makeBatched(call_rescale_relu(opened(gradient), opened(saved[0]), opened(ref), eps), 0,
                                             batched->level())
                : call_rescale_relu(gradient, saved[0], ref, eps);
    return {found, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Guided backpropagation and deconvolution: only positive gradients pass; where ReLU was positive, or anywhere.
struct Positive : torch::autograd::Function<Positive> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, bool anywhere) {
    at::Tensor y = relu_below(x);
    ctx->saved_data["anywhere"] = anywhere;
    ctx->save_for_backward({anywhere ? at::Tensor() : y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const at::Tensor passed = gradients[0].relu();
    if (ctx->saved_data["anywhere"].toBool()) {
      return {passed, at::Tensor()};
    }
    return {at::threshold_backward(passed, ctx->get_saved_variables()[0], 0), at::Tensor()};
  }
};

}  // namespace

at::Tensor relu(const Pass& pass, const at::Tensor& x) {
  if (pass.table->relu != Relu::kRescale) {
    return Positive::apply(x, pass.table->relu == Relu::kDeconvolution);
  }
  if (pass.recording) {
    pass.tape->record(x);
    return at::relu(x);
  }
  const at::Tensor ref = pass.tape->next(x);
  if (!ref.defined()) {
    return at::relu(x);
  }
  return Rescale::apply(pass.tape->copies ? x.clone() : x, ref, pass.tape, pass.eps);
}

}  // namespace fusum::rules

// Integrated gradients (Sundararajan et al., 2017) of a TorchScript file, by the ops alone: no Python, no fusum class.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/script.h>

#include <cstdio>
#include <string>

#include "check.h"

namespace {

constexpr int64_t kPoints = 200;

// Calls an op as a program without Python sees it: by its name in torch's dispatcher.
template <typename... Arguments>
torch::jit::Stack call(const char* name, Arguments... arguments) {
  torch::jit::Stack stack{c10::IValue(arguments)...};
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack;
}

std::string saved_model(const std::string& path) {
  torch::jit::Module model("model");
  model.register_parameter("weight", at::linspace(-1, 1, 24, at::kDouble).reshape({6, 4}), /*is_buffer=*/false);
  model.register_parameter("readout", at::linspace(0.5, 1.5, 6, at::kDouble), /*is_buffer=*/false);
  model.define(R"(
    def forward(self, x):
        hidden = torch.tanh(torch.matmul(x, self.weight.t()))
        return torch.matmul(hidden, self.readout)
  )");
  model.save(path);
  return path;
}

// Midpoints of equal steps: alphas (p + 1/2) / n, weights 1 / n.
at::Tensor integrated_gradients(torch::jit::Module& model, const at::Tensor& inputs, const at::Tensor& baselines,
                                int64_t points_a_call) {
  auto alphas = (at::arange(kPoints, at::kDouble) + 0.5) / kPoints;
  auto weights = at::full({kPoints}, 1.0 / kPoints, at::kDouble);
  auto total = at::zeros_like(inputs);
  for (int64_t first = 0; first < kPoints; first += points_a_call) {
    auto part = at::indexing::Slice(first, first + points_a_call);
    auto points = call("fusum::path_points", inputs, baselines, std::nullopt, alphas.index({part}))[0].toTensor();
    points.requires_grad_();
    auto outputs = model.forward({points}).toTensor();
    auto gradients = torch::autograd::grad({outputs}, {points}, {at::ones_like(outputs)})[0];
    call("fusum::path_sum", total, gradients, weights.index({part}));
  }
  return call("fusum::times_change", total, inputs, baselines, std::nullopt)[0].toTensor();
}

}  // namespace

int main() {
  auto path = saved_model("integrated_gradients_test.pt");
  auto model = torch::jit::load(path);
  std::remove(path.c_str());

  at::manual_seed(0);
  auto inputs = at::randn({5, 4}, at::kDouble);
  for (const auto& baselines :
       {at::zeros({}, at::kDouble), at::randn({1, 4}, at::kDouble), at::randn({5, 4}, at::kDouble)}) {
    auto scores = integrated_gradients(model, inputs, baselines, kPoints);
    auto change =
        model.forward({inputs}).toTensor() - model.forward({baselines.expand_as(inputs).contiguous()}).toTensor();
    CHECK_THAT(change.abs().min().item<double>() > 1e-2);  // else completeness would hold for zeros, too
    CHECK_THAT(at::allclose(scores.sum(1), change, /*rtol=*/0, /*atol=*/1e-4));
    auto cut = integrated_gradients(model, inputs, baselines, /*points_a_call=*/7);
    CHECK_THAT(at::allclose(scores, cut, /*rtol=*/0, /*atol=*/1e-12));
  }
  std::cout << "integrated gradients of a TorchScript file: complete, and independent of the cut\n";
  return 0;
}

#include <torch/library.h>

#include "ops/cpu/layers.h"

namespace fusum::cpu {
namespace {

Tensor perceptron_outputs(const Tensor& points, at::TensorList weights, at::TensorList biases,
                          const c10::List<std::string>& activations) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Layers layers(points, weights, biases, activations);
  const Tensor outputs = at::empty({layers.rows, layers.outputs()}, points.options());
  layers.for_blocks_of_rows(false, [&](int64_t start, int64_t count) {
    Tensor y = points.narrow(0, start, count);
    for (const Layer& layer : layers.all) {
      y = layer(y, /*keeps_all=*/false).y;
    }
    outputs.narrow(0, start, count).copy_(y);
  });
  return outputs;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("perceptron_outputs", &perceptron_outputs); }

}  // namespace fusum::cpu

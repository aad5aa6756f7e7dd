#include <torch/library.h>

#include <tuple>

#include "ops/cpu/layers.h"
#include "ops/rescale.h"

namespace fusum::cpu {
namespace {

// The gradient of what a layer returns from that of its activation.
Tensor back(const Layer& layer, const Tensor& gradient, const Values& at) {
  return back(layer.activation, gradient, at.x, at.y);
}

// The same by the change of the activation from a reference.
Tensor back(const Layer& layer, const Tensor& gradient, const Values& at, const Values& reference, double eps) {
  if (layer.activation == Activation::kNone) {
    return gradient;
  }
  if (layer.activation == Activation::kRelu) {
    return call_rescale_relu(gradient, at.x, reference.x, eps);
  }
  return call_rescale(gradient, at.x, reference.x, at.y, reference.y, back(layer, at::ones_like(at.x), at), eps);
}

struct Perceptron {
  Perceptron(const Tensor& points, const std::optional<Tensor>& references, at::TensorList weights,
             at::TensorList biases, const c10::List<std::string>& activations, const Tensor& columns, double eps)
      : layers(points, weights, biases, activations), references(references), columns(columns), eps(eps) {
    const int64_t rows = layers.rows;
    if (references) {
      FUSUM_CHECK(references->dim() == 2 && (references->size(0) == 1 || references->size(0) == rows) &&
                      references->size(1) == points.size(1),
                  "references", *references, "a row, or one for each of ", points.sizes());
      check_dtype("references", *references, points.scalar_type(), points.scalar_type());
    }
    FUSUM_CHECK(
        columns.dim() == 1 && columns.scalar_type() == at::kLong && (columns.size(0) == 1 || columns.size(0) == rows),
        "columns", columns, "int64, one for all rows or one for each");
    if (columns.numel()) {
      const int64_t low = columns.min().item<int64_t>();
      const int64_t high = columns.max().item<int64_t>();
      TORCH_CHECK_INDEX(low >= 0 && high < layers.outputs(), "columns: got ", low < 0 ? low : high,
                        "; expected values from 0 to ", layers.outputs() - 1);
    }
    if (columns.size(0) == 1) {  // no other row of the last layer is needed
      Layer& last = layers.all.back();
      const int64_t column = columns.item<int64_t>();
      last.weight = last.weight.narrow(0, column, 1);
      last.bias = last.bias.narrow(0, column, 1);
    }
  }

  // The explained number of each row of what the last layer holds, [rows, 1].
  Tensor pick(const Tensor& out, const Tensor& picked) const {
    return columns.size(0) == 1 ? out.narrow(1, 0, 1) : out.gather(1, picked.unsqueeze(1));
  }

  void run(int64_t start, int64_t count, const std::vector<Values>& shared, const Tensor& gradients,
           const Tensor& reached, const Tensor& reached_ref) const {
    const Tensor picked = columns.size(0) == 1 ? columns : columns.narrow(0, start, count);
    std::vector<Values> at = layers.forward(layers.points.narrow(0, start, count), references.has_value());
    std::vector<Values> own;
    if (references && shared.empty()) {
      own = layers.forward(references->narrow(0, start, count), true);
      reached_ref.narrow(0, start, count).copy_(pick(own.back().y, picked).squeeze(1));
    }
    const std::vector<Values>& reference = shared.empty() ? own : shared;
    reached.narrow(0, start, count).copy_(pick(at.back().y, picked).squeeze(1));
    Tensor gradient = at::ones_like(at.back().x);
    if (columns.size(0) != 1) {
      gradient.zero_().scatter_(1, picked.unsqueeze(1), 1);
    }
    for (size_t i = layers.all.size(); i-- > 0;) {
      const Layer& layer = layers.all[i];
      gradient = references ? back(layer, gradient, at[i], reference[i], eps) : back(layer, gradient, at[i]);
      at[i] = {};
      if (i > 0) {
        gradient = layer.back(gradient);
      }
    }
    gradients.narrow(0, start, count).copy_(layers.all[0].back(gradient));
  }

  Layers layers;
  const std::optional<Tensor> references;
  const Tensor columns;
  const double eps;
};

std::tuple<Tensor, Tensor, Tensor> perceptron(const Tensor& points, const std::optional<Tensor>& references,
                                              at::TensorList weights, at::TensorList biases,
                                              const c10::List<std::string>& activations, const Tensor& columns,
                                              double eps) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Perceptron call(points, references, weights, biases, activations, columns, eps);
  const Tensor gradients = at::empty(points.sizes(), points.options());
  const Tensor reached = at::empty({call.layers.rows}, points.options());
  const bool one = references && references->size(0) == 1;
  const Tensor reached_ref =
      at::empty({references ? (one ? call.columns.size(0) : call.layers.rows) : 0}, points.options());
  std::vector<Values> shared;
  if (one) {
    shared = call.layers.forward(*references, true);
    const Tensor out = shared.back().y;
    reached_ref.copy_(call.columns.size(0) == 1 ? out.squeeze(0) : out[0].index_select(0, call.columns));
  }
  call.layers.for_blocks_of_rows(
      true, [&](int64_t start, int64_t count) { call.run(start, count, shared, gradients, reached, reached_ref); });
  return {gradients, reached, reached_ref};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("perceptron", &perceptron); }

}  // namespace fusum::cpu

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "ops/checks.h"

namespace fusum::cpu {
namespace {

using at::Tensor;

// Activations of a block stay in a core's cache, but a block has rows enough to be worth reading all weights for.
constexpr int64_t kCacheBytes = 1 << 19;
constexpr int64_t kLeastRows = 64;

enum class Activation { kNone, kRelu, kTanh, kSigmoid, kSilu, kGelu };

Activation activation_of(const std::string& name) {
  static const std::vector<std::string> names = {"none", "relu", "tanh", "sigmoid", "silu", "gelu"};
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK_VALUE(found != names.end(), "activations: got ", name, "; expected some of ", names);
  return static_cast<Activation>(found - names.begin());
}

Tensor activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kTanh:
      return at::tanh(x);
    case Activation::kSigmoid:
      return at::sigmoid(x);
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    default:
      return x;
  }
}

// gradient times the slope at x, where the activation is y.
Tensor back(Activation activation, const Tensor& gradient, const Tensor& x, const Tensor& y) {
  switch (activation) {
    case Activation::kRelu:
      return at::threshold_backward(gradient, y, 0);
    case Activation::kTanh:
      return at::tanh_backward(gradient, y);
    case Activation::kSigmoid:
      return at::sigmoid_backward(gradient, y);
    case Activation::kSilu:
      return at::silu_backward(gradient, x);
    case Activation::kGelu:
      return at::gelu_backward(gradient, x);
    default:
      return gradient;
  }
}

Tensor rescaled(const Tensor& gradient, const Tensor& x, const Tensor& x_ref, const std::optional<Tensor>& y,
                const std::optional<Tensor>& y_ref, const std::optional<Tensor>& slope, double eps) {
  using Rescale = Tensor(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                         const std::optional<Tensor>&, const std::optional<Tensor>&, double);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusum::rescale", "").typed<Rescale>();
  return op.call(gradient, x, x_ref, y, y_ref, slope, eps);
}

// What a linear layer returns, and its activation.
struct Values {
  Tensor x;
  Tensor y;
};

struct Layer {
  Tensor weight;
  Tensor bias;
  Activation activation;

  Values operator()(const Tensor& input) const {
    const Tensor x = at::addmm(bias, input, weight.t());
    return {x, activate(activation, x)};
  }

  Tensor back(const Tensor& gradient, const Values& at) const { return cpu::back(activation, gradient, at.x, at.y); }

  // The same by the change of the activation from a reference.
  Tensor back(const Tensor& gradient, const Values& at, const Values& reference, double eps) const {
    if (activation == Activation::kNone) {
      return gradient;
    }
    if (activation == Activation::kRelu) {
      return rescaled(gradient, at.x, reference.x, std::nullopt, std::nullopt, std::nullopt, eps);
    }
    return rescaled(gradient, at.x, reference.x, at.y, reference.y, back(at::ones_like(at.x), at), eps);
  }
};

struct Perceptron {
  Perceptron(const Tensor& points, const std::optional<Tensor>& references, at::TensorList weights,
             at::TensorList biases, const c10::List<std::string>& activations, const Tensor& columns, double eps)
      : points(points), references(references), columns(columns), eps(eps), rows(points.size(0)) {
    check_dtype("points", points, at::kDouble, at::kFloat);
    FUSUM_CHECK(points.dim() == 2, "points", points, "two dimensions");
    TORCH_CHECK_VALUE(!weights.empty() && weights.size() == biases.size() && weights.size() == activations.size(),
                      "weights: got ", weights.size(), " with ", biases.size(), " biases and ", activations.size(),
                      " activations; expected as many of each, at least one");
    int64_t width = points.size(1);
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor& weight = weights[i];
      FUSUM_CHECK(weight.dim() == 2 && weight.size(1) == width, "weights", weight, "a matrix of ", width, " columns");
      check_dtype("weights", weight, points.scalar_type(), points.scalar_type());
      check_device("weights", weight, points);
      width = weight.size(0);
      FUSUM_CHECK(biases[i].dim() == 1 && biases[i].size(0) == width, "biases", biases[i], width, " numbers");
      check_dtype("biases", biases[i], points.scalar_type(), points.scalar_type());
      layers.push_back({weight.detach(), biases[i].detach(), activation_of(activations.get(i))});
    }
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
      TORCH_CHECK_INDEX(low >= 0 && high < width, "columns: got ", low < 0 ? low : high, "; expected values from 0 to ",
                        width - 1);
    }
    if (columns.size(0) == 1) {  // no other row of the last layer is needed
      Layer& last = layers.back();
      const int64_t column = columns.item<int64_t>();
      last.weight = last.weight.narrow(0, column, 1);
      last.bias = last.bias.narrow(0, column, 1);
    }
  }

  // In how many blocks rows are cut: not by how many threads there are, which would change the rounding.
  int64_t blocks() const {
    if (rows < 2 * kLeastRows) {
      return rows > 0;
    }
    int64_t width = points.size(1);
    for (const Layer& layer : layers) {
      width += 2 * layer.weight.size(0);
    }
    const int64_t fitting = kCacheBytes / (width * static_cast<int64_t>(points.element_size()));
    const int64_t pairs = rows / (2 * std::max(kLeastRows, fitting));
    return 2 * std::max<int64_t>(1, pairs);
  }

  std::vector<Values> forward(const Tensor& from) const {
    std::vector<Values> found;
    for (const Layer& layer : layers) {
      found.push_back(layer(found.empty() ? from : found.back().y));
    }
    return found;
  }

  // The explained number of each row of what the last layer holds, [rows, 1].
  Tensor pick(const Tensor& out, const Tensor& picked) const {
    return picked.size(0) == 1 ? out.narrow(1, 0, 1) : out.gather(1, picked.unsqueeze(1));
  }

  void run(int64_t start, int64_t count, const std::vector<Values>& shared, const Tensor& gradients,
           const Tensor& reached, const Tensor& reached_ref) const {
    const Tensor picked = columns.size(0) == 1 ? columns : columns.narrow(0, start, count);
    const std::vector<Values> at = forward(points.narrow(0, start, count));
    std::vector<Values> own;
    if (references && shared.empty()) {
      own = forward(references->narrow(0, start, count));
      reached_ref.narrow(0, start, count).copy_(pick(own.back().y, picked).squeeze(1));
    }
    const std::vector<Values>& reference = shared.empty() ? own : shared;
    reached.narrow(0, start, count).copy_(pick(at.back().y, picked).squeeze(1));
    Tensor gradient = at::ones_like(at.back().x);
    if (picked.size(0) != 1) {
      gradient.zero_().scatter_(1, picked.unsqueeze(1), 1);
    }
    for (size_t i = layers.size(); i-- > 0;) {
      gradient = references ? layers[i].back(gradient, at[i], reference[i], eps) : layers[i].back(gradient, at[i]);
      if (i > 0) {
        gradient = at::mm(gradient, layers[i].weight);
      }
    }
    Tensor rows_of = gradients.narrow(0, start, count);
    at::mm_out(rows_of, gradient, layers[0].weight);
  }

  const Tensor points;
  const std::optional<Tensor> references;
  const Tensor columns;
  const double eps;
  const int64_t rows;
  std::vector<Layer> layers;
};

std::tuple<Tensor, Tensor, Tensor> perceptron(const Tensor& points, const std::optional<Tensor>& references,
                                              at::TensorList weights, at::TensorList biases,
                                              const c10::List<std::string>& activations, const Tensor& columns,
                                              double eps) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Perceptron call(points, references, weights, biases, activations, columns, eps);
  const Tensor gradients = at::empty(points.sizes(), points.options());
  const Tensor reached = at::empty({call.rows}, points.options());
  const bool one = references && references->size(0) == 1;
  const Tensor reached_ref = at::empty({references ? (one ? call.columns.size(0) : call.rows) : 0}, points.options());
  std::vector<Values> shared;
  if (one) {
    shared = call.forward(*references);
    const Tensor out = shared.back().y;
    reached_ref.copy_(call.columns.size(0) == 1 ? out.squeeze(0) : out[0].index_select(0, call.columns));
  }
  const int64_t blocks = call.blocks();
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * call.rows / blocks;
      call.run(start, (block + 1) * call.rows / blocks - start, shared, gradients, reached, reached_ref);
    }
  });
  return {gradients, reached, reached_ref};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("perceptron", &perceptron); }

}  // namespace fusum::cpu

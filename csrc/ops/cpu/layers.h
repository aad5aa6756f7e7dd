// Linear layers with an activation behind each, for the ops on perceptrons: rows go through them in blocks.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "memory/arena.h"
#include "ops/checks.h"
#include "ops/product.h"

namespace fusum::cpu {

using at::Tensor;

// Activations of a block stay in a core's cache, or in that of all where oneDNN's products gain by more rows; but a
// block has rows enough to be worth reading all weights for.
constexpr int64_t kCacheBytes = 1 << 19;
constexpr int64_t kOneDnnBytes = 1 << 22;
constexpr int64_t kLeastRows = 64;

enum class Activation { kNone, kRelu, kTanh, kSigmoid, kSilu, kGelu };

inline Activation activation_of(const std::string& name) {
  static const std::vector<std::string> names = {"none", "relu", "tanh", "sigmoid", "silu", "gelu"};
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK_VALUE(found != names.end(), "activations: got ", name, "; expected some of ", names);
  return static_cast<Activation>(found - names.begin());
}

// over_x: written over x, where the way back has no need of that.
inline Tensor activate(Activation activation, Tensor x, bool over_x) {
  switch (activation) {
    case Activation::kRelu:
      return over_x ? at::relu_(x) : at::relu(x);
    case Activation::kTanh:
      return over_x ? at::tanh_(x) : at::tanh(x);
    case Activation::kSigmoid:
      return over_x ? at::sigmoid_(x) : at::sigmoid(x);
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    default:
      return x;
  }
}

// gradient times the slope at x, where the activation is y.
inline Tensor back(Activation activation, const Tensor& gradient, const Tensor& x, const Tensor& y) {
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

// What a linear layer returns, if that is kept, and its activation.
struct Values {
  Tensor x;
  Tensor y;
};

struct Layer {
  Tensor weight;
  Tensor bias;
  Activation activation;
  bool by_onednn;

  Tensor linear(const Tensor& input) const {
    return gains(input) ? onednn_product(input, weight, bias) : at::addmm(bias, input, weight.t());
  }

  // The gradient of what the layer takes from that of what it returns.
  Tensor back(const Tensor& gradient) const {
    return gains(gradient) ? onednn_product(gradient, weight.t(), {}) : at::mm(gradient, weight);
  }

  bool gains(const Tensor& rows) const {
    return by_onednn && is_large_product(rows.size(0), weight.size(1), weight.size(0));
  }

  Values operator()(const Tensor& input, bool keeps_all) const {
    const Tensor x = linear(input);
    return {x, activate(activation, x, /*over_x=*/!keeps_all)};
  }
};

struct Layers {
  Layers(const Tensor& points, at::TensorList weights, at::TensorList biases, const c10::List<std::string>& activations)
      : points(points),
        rows(points.dim() ? points.size(0) : 0),
        by_onednn(points.scalar_type() == at::kFloat && is_onednn_faster()) {
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
      all.push_back({weight.detach(), biases[i].detach(), activation_of(activations.get(i)), by_onednn});
    }
  }

  int64_t outputs() const { return all.back().weight.size(0); }

  // keeps_all: also what activations are taken of, where their slopes are told by what they are.
  std::vector<Values> forward(const Tensor& from, bool keeps_all) const {
    std::vector<Values> found;
    for (const Layer& layer : all) {
      found.push_back(layer(found.empty() ? from : found.back().y, keeps_all));
    }
    return found;
  }

  // Calls body(start, count) for blocks of rows. keeps: what layers return is kept for the way back.
  template <class Body>
  void for_blocks_of_rows(bool keeps, const Body& body) const {
    const int64_t count = blocks(keeps);
    const memory::Inside here = memory::Inside::here();
    std::atomic<int64_t> next{0};  // a thread that others hold up takes fewer
    at::parallel_for(0, count, 1, [&](int64_t, int64_t) {
      const memory::Joined joined(here);
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      for (int64_t block = next++; block < count; block = next++) {
        const int64_t start = block * rows / count;
        body(start, (block + 1) * rows / count - start);
      }
    });
  }

  const Tensor points;
  const int64_t rows;
  const bool by_onednn;  // in this thread; others have no part in the choice
  std::vector<Layer> all;

 private:
  // Not by how many threads there are, which would change the rounding.
  int64_t blocks(bool keeps) const {
    if (rows < 2 * kLeastRows) {
      return rows > 0;
    }
    int64_t kept = points.size(1);
    int64_t widest = 0;
    for (const Layer& layer : all) {
      kept += 2 * layer.weight.size(0);
      widest = std::max(widest, layer.weight.size(1) + 2 * layer.weight.size(0));
    }
    const int64_t width = keeps ? kept : widest;
    const int64_t bytes = by_onednn ? kOneDnnBytes : kCacheBytes;
    const int64_t fitting = bytes / (width * static_cast<int64_t>(points.element_size()));
    return 2 * std::max<int64_t>(1, rows / (2 * std::max(kLeastRows, fitting)));
  }
};

}  // namespace fusum::cpu

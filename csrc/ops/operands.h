// The operands of each op, checked and brought to one dense layout, the same for every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "math/coalitions.h"
#include "math/index.h"
#include "ops/broadcast.h"

namespace fusum {

// The baselines operand. Where rows need not be told apart (a scalar, or a row each), row is all elements.
struct Baselines {
  Baselines(const at::Tensor& baselines, const std::optional<at::Tensor>& picks, const at::Tensor& inputs, int64_t rows,
            at::MemoryFormat format);

  template <class T>
  BaseRows<T> rows() const {
    return rows_at(data.const_data_ptr<T>());
  }

  template <class T>
  BaseRows<T> rows_at(const T* address) const {
    return {address, index.defined() ? index.const_data_ptr<int64_t>() : nullptr, row_step, element_step, count};
  }

  at::Tensor data;
  at::Tensor index;
  int64_t count;
  int64_t row_step;
  int64_t element_step;
};

struct PathPoints {
  PathPoints(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
             const at::Tensor& alphas);

  at::MemoryFormat format;
  Baselines base;
  at::Tensor inputs;
  at::Tensor alphas;
  at::Tensor points;
  int64_t nodes;
  int64_t elements;
  int64_t row;
};

// A tensor that is changed in place: work is total itself, or a dense copy that store() writes back.
struct InPlace {
  InPlace(const at::Tensor& total, at::MemoryFormat format);
  void store() const;

  at::Tensor total;
  at::Tensor work;
};

struct PathSum {
  PathSum(const at::Tensor& total, const at::Tensor& gradients, const at::Tensor& weights);

  at::MemoryFormat format;
  InPlace total;
  at::Tensor gradients;
  at::Tensor weights;
  int64_t nodes;
  int64_t elements;
};

struct TimesChange {
  TimesChange(const at::Tensor& gradients, const at::Tensor& inputs, const at::Tensor& baselines,
              const std::optional<at::Tensor>& index);

  at::MemoryFormat format;
  Baselines base;
  at::Tensor gradients;
  at::Tensor inputs;
  at::Tensor products;
  int64_t elements;
  int64_t row;
};

struct RandomPoints {
  RandomPoints(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
               const at::Tensor& coefficients);

  at::MemoryFormat format;
  Baselines base;
  at::Tensor inputs;
  at::Tensor coefficients;  // of the accumulation dtype
  at::Tensor points;
  int64_t elements;
  int64_t row;
};

struct NoisyCopies {
  NoisyCopies(const at::Tensor& inputs, const at::Tensor& noise, int64_t samples, int64_t start);

  at::MemoryFormat format;
  at::Tensor inputs;
  at::Tensor noise;
  at::Tensor copies;
  int64_t elements;
  int64_t row;
};

struct Moments {
  Moments(const at::Tensor& total, const std::optional<at::Tensor>& squares, const at::Tensor& values, int64_t samples,
          int64_t start);
  void store() const;

  at::MemoryFormat format;
  InPlace total;
  std::optional<InPlace> squares;
  at::Tensor values;
  int64_t count;     // rows of values
  int64_t row;       // elements of a row
  int64_t first;     // the first element of total that changes
  int64_t elements;  // how many change
};

struct Rescale {
  Rescale(const at::Tensor& gradients, const at::Tensor& x, const at::Tensor& x_ref, const std::optional<at::Tensor>& y,
          const std::optional<at::Tensor>& y_ref, const std::optional<at::Tensor>& slope, double eps);
  at::Tensor result() const;  // products in the dtype of the given gradients

  at::ScalarType given;
  at::ScalarType dtype;  // of x and its like; work gradients and products are of this or its accumulation dtype
  at::Tensor products;
  Spread gradients;
  Spread x;
  Spread x_ref;
  std::optional<Spread> y;  // these three are absent for ReLU
  std::optional<Spread> y_ref;
  std::optional<Spread> slope;
  double absolute;  // the tolerance
  double relative;
  int64_t elements;
};

// The elements of inputs, baselines and rows are only copied: kernels read them as bits of their size.
struct CoalitionRows {
  CoalitionRows(const at::Tensor& inputs, const at::Tensor& baselines, const std::optional<at::Tensor>& index,
                const at::Tensor& features, const at::Tensor& coalitions, const at::Tensor& which,
                const at::Tensor& examples);

  template <class T>
  Coalitions<T> as() const {
    return {static_cast<const T*>(inputs.const_data_ptr()),
            base.rows_at(static_cast<const T*>(base.data.const_data_ptr())),
            features.const_data_ptr<int32_t>(),
            features.size(0) == 1 ? 0 : row,
            coalitions.const_data_ptr<bool>(),
            coalitions.size(1),
            which.const_data_ptr<int64_t>(),
            examples.const_data_ptr<int64_t>(),
            row};
  }

  at::MemoryFormat format;
  Baselines base;
  at::Tensor inputs;
  at::Tensor features;
  at::Tensor coalitions;
  at::Tensor which;
  at::Tensor examples;
  at::Tensor rows;
  int64_t elements;
  int64_t row;
};

struct DrawCoalitions {
  DrawCoalitions(const at::Tensor& probabilities, int64_t count);

  at::Tensor weights;  // the probabilities, of sum 1
  at::Tensor coalitions;
  int64_t count;
  int64_t features;
};

}  // namespace fusum

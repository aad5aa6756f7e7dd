#include "ops/operands.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/all.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <limits>

#include "ops/checks.h"
#include "ops/dtypes.h"

namespace fusum {
namespace {

using at::MemoryFormat;
using at::ScalarType;
using at::Tensor;

// Path nodes come from the CPU or lie on the leader's device already.
Tensor nodes_on(const char* name, const Tensor& nodes, const Tensor& leader) {
  FUSUM_CHECK(nodes.dim() == 1 && nodes.scalar_type() == at::kDouble, name, nodes, "float64 of one dimension");
  if (nodes.device() == leader.device()) {
    return nodes.contiguous();
  }
  FUSUM_CHECK(nodes.is_cpu(), name, nodes, "a tensor on the cpu or on ", leader.device());
  return nodes.contiguous().to(leader.device());
}

void check_samples(int64_t samples, int64_t start, int64_t count, int64_t examples) {
  TORCH_CHECK_VALUE(samples >= 1, "samples: got ", samples, "; expected at least 1");
  TORCH_CHECK_VALUE(start >= 0 && start + count <= examples * samples, "start: got ", start, " with ", count,
                    " rows; expected rows within ", examples, " examples of ", samples, " samples");
}

// tensor is of x's dtype and broadcasts to gradients.
void check_spread(const char* name, const Tensor& tensor, const Tensor& gradients, const Tensor& x) {
  check_dtype(name, tensor, x.scalar_type(), x.scalar_type());
  check_device(name, tensor, gradients);
  FUSUM_CHECK(at::is_expandable_to(tensor.sizes(), gradients.sizes()), name, tensor, "a shape that broadcasts to ",
              gradients.sizes());
}

void check_value(const char* name, const std::optional<Tensor>& value, bool relu, const Tensor& gradients,
                 const Tensor& x) {
  TORCH_CHECK_VALUE(value || relu, name, ": got None; expected a tensor where y is one");
  if (value) {
    FUSUM_CHECK(!relu, name, *value, "None where y is None");
    check_spread(name, *value, gradients, x);
  }
}

double rounding_of(ScalarType dtype) {
  double rounding = 0;
  visit_float(dtype,
              [&](auto type) { rounding = static_cast<double>(std::numeric_limits<decltype(type)>::epsilon()); });
  return rounding;
}

const Tensor& checked_rows(const char* name, const Tensor& rows) {
  check_rows(name, rows);
  return rows;
}

const Tensor& checked_total(const char* name, const Tensor& total) {
  check_total(name, total);
  return total;
}

}  // namespace

// An expanded row is one row: it is never written out.
static Tensor distinct_rows(const Tensor& rows) {
  return rows.size(0) > 1 && rows.stride(0) == 0 ? rows.narrow(0, 0, 1) : rows;
}

Baselines::Baselines(const Tensor& baselines, const std::optional<Tensor>& picks, const Tensor& inputs, int64_t rows,
                     MemoryFormat format) {
  FUSUM_CHECK(baselines.scalar_type() == inputs.scalar_type(), "baselines", baselines, word(inputs.scalar_type()));
  check_device("baselines", baselines, inputs);
  row_step = 0;
  element_step = 0;
  count = 1;
  if (baselines.dim() == 0) {
    TORCH_CHECK_VALUE(!picks, "index: got a tensor; expected None with a scalar baseline");
    data = baselines;
    return;
  }
  FUSUM_CHECK(baselines.dim() == inputs.dim() && baselines.sizes().slice(1) == inputs.sizes().slice(1), "baselines",
              baselines, "a scalar or rows of shape ", inputs.sizes().slice(1));
  if (picks) {
    check_index("index", *picks, rows, inputs);
    index = picks->contiguous();
  } else {
    FUSUM_CHECK(baselines.size(0) == 1 || baselines.size(0) == rows, "baselines", baselines, "1 row or ", rows,
                " rows where index is None");
  }
  data = (picks ? baselines : distinct_rows(baselines)).contiguous(format);
  count = data.size(0);
  row_step = !picks && count == 1 ? 0 : row_elements(inputs);
  element_step = 1;
}

// Rows need not be told apart for a scalar, nor for a row each.
static int64_t row_of(const Baselines& base, const Tensor& inputs) {
  const bool flat = base.element_step == 0 || (base.row_step != 0 && !base.index.defined());
  return flat ? inputs.numel() : row_elements(inputs);
}

PathPoints::PathPoints(const Tensor& inputs, const Tensor& baselines, const std::optional<Tensor>& index,
                       const Tensor& alphas)
    : format(format_of(checked_rows("inputs", inputs))),
      base(baselines, index, inputs, inputs.size(0), format),
      inputs(inputs.contiguous(format)),
      alphas(nodes_on("alphas", alphas, inputs)),
      points(rows_like(inputs, alphas.numel() * inputs.size(0), inputs.scalar_type(), format)),
      nodes(alphas.numel()),
      elements(inputs.numel()),
      row(row_of(base, inputs)) {}

InPlace::InPlace(const Tensor& total, MemoryFormat format) : total(total), work(total.contiguous(format)) {}

void InPlace::store() const {
  if (!work.is_same(total)) {
    total.copy_(work);
  }
}

PathSum::PathSum(const Tensor& total, const Tensor& gradients, const Tensor& weights)
    : format(format_of(checked_total("total", total))),
      total(total, format),
      weights(nodes_on("weights", weights, total)),
      nodes(weights.numel()),
      elements(total.numel()) {
  check_rows("gradients", gradients);
  check_like("gradients", gradients, nodes * total.size(0), total);
  this->gradients = gradients.contiguous(format);
}

TimesChange::TimesChange(const Tensor& gradients, const Tensor& inputs, const Tensor& baselines,
                         const std::optional<Tensor>& index)
    : format(format_of(gradients)),
      base(baselines, index, checked_rows("inputs", inputs), inputs.size(0), format),
      inputs(inputs.contiguous(format)),
      elements(inputs.numel()),
      row(row_of(base, inputs)) {
  check_like("gradients", gradients, inputs.size(0), inputs);
  check_dtype("gradients", gradients, inputs.scalar_type(), accumulation(inputs.scalar_type()));
  this->gradients = gradients.contiguous(format);
  products = rows_like(gradients, gradients.size(0), gradients.scalar_type(), format);
}

RandomPoints::RandomPoints(const Tensor& inputs, const Tensor& baselines, const std::optional<Tensor>& index,
                           const Tensor& coefficients)
    : format(format_of(checked_rows("inputs", inputs))),
      base(baselines, index, inputs, inputs.size(0), format),
      inputs(inputs.contiguous(format)),
      elements(inputs.numel()),
      row(row_elements(inputs)) {
  check_column("coefficients", coefficients, inputs.size(0), inputs);
  check_dtype("coefficients", coefficients, inputs.scalar_type(), at::kDouble);
  this->coefficients = coefficients.to(accumulation(inputs.scalar_type())).contiguous();
  points = rows_like(inputs, inputs.size(0), inputs.scalar_type(), format);
}

NoisyCopies::NoisyCopies(const Tensor& inputs, const Tensor& noise, int64_t samples, int64_t start)
    : format(format_of(checked_rows("inputs", inputs))),
      inputs(inputs.contiguous(format)),
      elements(noise.numel()),
      row(row_elements(inputs)) {
  check_like("noise", noise, noise.dim() ? noise.size(0) : 1, inputs);
  check_dtype("noise", noise, inputs.scalar_type(), at::kFloat);
  check_samples(samples, start, noise.size(0), inputs.size(0));
  this->noise = noise.contiguous(format);
  copies = rows_like(inputs, noise.size(0), inputs.scalar_type(), format);
}

Moments::Moments(const Tensor& total, const std::optional<Tensor>& squares, const Tensor& values, int64_t samples,
                 int64_t start)
    : format(format_of(checked_total("total", total))), total(total, format), row(row_elements(total)) {
  check_rows("values", values);
  check_like("values", values, values.size(0), total);
  count = values.size(0);
  check_samples(samples, start, count, total.size(0));
  if (squares) {
    check_like("squares", *squares, total.size(0), total);
    check_dtype("squares", *squares, total.scalar_type(), total.scalar_type());
    this->squares.emplace(*squares, format);
  }
  this->values = values.contiguous(format);
  const int64_t first_example = start / samples;
  const int64_t examples = count == 0 ? 0 : example_of(count - 1, start, samples) - first_example + 1;
  first = offset_of(first_example, row);
  elements = offset_of(examples, row);
}

void Moments::store() const {
  total.store();
  if (squares) {
    squares->store();
  }
}

// Wide gradients take the operands with them; else gradients are of the dtype of x, or are read in its accumulation
// dtype.
static ScalarType operand_dtype(const Tensor& gradients, const Tensor& x) {
  return gradients.scalar_type() == at::kDouble ? at::kDouble : x.scalar_type();
}

static ScalarType gradient_dtype(const Tensor& gradients, ScalarType operands) {
  return gradients.scalar_type() == operands ? operands : accumulation(operands);
}

static const Tensor& checked_rescale(const Tensor& gradients, const Tensor& x, const Tensor& x_ref,
                                     const std::optional<Tensor>& y, const std::optional<Tensor>& y_ref,
                                     const std::optional<Tensor>& slope, double eps) {
  TORCH_CHECK_VALUE(eps >= 0, "eps: got ", eps, "; expected at least 0");
  check_floats("gradients", gradients);
  check_floats("x", x);
  check_spread("x", x, gradients, x);
  check_spread("x_ref", x_ref, gradients, x);
  check_value("y", y, !y, gradients, x);
  check_value("y_ref", y_ref, !y, gradients, x);
  check_value("slope", slope, !y, gradients, x);
  return gradients;
}

// Without the cost of a call where nothing changes.
static Tensor as(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

static std::optional<Spread> spread(const std::optional<Tensor>& value, ScalarType dtype, const Tensor& products) {
  return value ? std::optional<Spread>(std::in_place, as(*value, dtype), products) : std::nullopt;
}

Rescale::Rescale(const Tensor& gradients, const Tensor& x, const Tensor& x_ref, const std::optional<Tensor>& y,
                 const std::optional<Tensor>& y_ref, const std::optional<Tensor>& slope, double eps)
    : given(checked_rescale(gradients, x, x_ref, y, y_ref, slope, eps).scalar_type()),
      dtype(operand_dtype(gradients, x)),
      products(at::empty_like(gradients, gradient_dtype(gradients, dtype))),
      gradients(as(gradients, products.scalar_type()), products),
      x(as(x, dtype), products),
      x_ref(as(x_ref, dtype), products),
      y(spread(y, dtype, products)),
      y_ref(spread(y_ref, dtype, products)),
      slope(spread(slope, dtype, products)),
      absolute(eps),
      relative(4 * rounding_of(x.scalar_type())),
      elements(gradients.numel()) {}

Tensor Rescale::result() const { return as(products, given); }

static const Tensor& checked_coalitions(const Tensor& inputs, const Tensor& features, const Tensor& coalitions,
                                        const Tensor& which, const Tensor& examples) {
  check_dims("inputs", inputs);
  check_dtype("features", features, at::kInt, at::kInt);
  check_like("features", features, features.dim() && features.size(0) == 1 ? 1 : inputs.size(0), inputs);
  check_dtype("coalitions", coalitions, at::kBool, at::kBool);
  FUSUM_CHECK(coalitions.dim() == 2, "coalitions", coalitions, "two dimensions");
  check_device("coalitions", coalitions, inputs);
  check_index("examples", examples, examples.numel(), inputs);
  check_index("which", which, examples.numel(), inputs);
  return inputs;
}

// Without an index of their own, baselines that are a row for each example follow the examples.
static Baselines baselines_of(const Tensor& baselines, const std::optional<Tensor>& index, const Tensor& inputs,
                              const Tensor& examples, MemoryFormat format) {
  const int64_t rows = examples.size(0);
  if (index || baselines.dim() == 0) {
    return {baselines, index, inputs, rows, format};
  }
  FUSUM_CHECK(baselines.size(0) == 1 || baselines.size(0) == inputs.size(0), "baselines", baselines, "1 row or ",
              inputs.size(0), " rows where index is None");
  const Tensor distinct = distinct_rows(baselines);
  return {distinct, distinct.size(0) == 1 ? std::nullopt : std::optional(examples), inputs, rows, format};
}

CoalitionRows::CoalitionRows(const Tensor& inputs, const Tensor& baselines, const std::optional<Tensor>& index,
                             const Tensor& features, const Tensor& coalitions, const Tensor& which,
                             const Tensor& examples)
    : format(format_of(checked_coalitions(inputs, features, coalitions, which, examples))),
      base(baselines_of(baselines, index, inputs, examples, format)),
      inputs(inputs.contiguous(format)),
      features(distinct_rows(features).contiguous(format)),
      coalitions(coalitions.contiguous()),
      which(which.contiguous()),
      examples(examples.contiguous()),
      rows(rows_like(inputs, examples.size(0), inputs.scalar_type(), format)),
      elements(rows.numel()),
      row(row_elements(inputs)) {}

static const Tensor& checked_probabilities(const Tensor& probabilities, int64_t count) {
  TORCH_CHECK_VALUE(count >= 0, "count: got ", count, "; expected at least 0");
  FUSUM_CHECK(probabilities.dim() == 1, "probabilities", probabilities, "one dimension");
  check_dtype("probabilities", probabilities, at::kFloat, at::kDouble);
  const double sum = probabilities.sum().item<double>();
  FUSUM_CHECK(sum > 0 && std::isfinite(sum) && probabilities.ge(0).all().item<bool>(), "probabilities", probabilities,
              "numbers of at least 0 with a sum above 0");
  return probabilities;
}

// Normalised as torch.distributions.Categorical does it, to the bit.
DrawCoalitions::DrawCoalitions(const Tensor& probabilities, int64_t count)
    : weights(checked_probabilities(probabilities, count).div(probabilities.sum(-1, true)).contiguous()),
      coalitions(at::empty({count, probabilities.numel()}, probabilities.options().dtype(at::kBool))),
      count(count),
      features(probabilities.numel()) {}

}  // namespace fusum

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/DistributionsHelper.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "ops/dtypes.h"
#include "ops/operands.h"

namespace fusum::cpu {
namespace {

constexpr int64_t kLong = 16;  // from here on ATen draws normal numbers in blocks of this many

template <class Distribution, class T>
void draw(const Distribution& distribution, at::CPUGeneratorImpl* generator, T* numbers, int64_t count) {
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<T>(distribution(generator));
  }
}

const at::exponential_distribution<double> kExponential{1};
const at::normal_distribution<double> kNormal{0, 1};

// Whether this torch draws a few numbers from these distributions: one with MKL may have MKL's streams.
template <class T>
bool found_alike() {
  constexpr int64_t kCount = kLong - 1;
  const auto given = at::detail::createCPUGenerator(0);
  const auto own = at::detail::createCPUGenerator(0);
  const auto tensor = at::empty({kCount}, c10::CppTypeToScalarType<T>::value);
  const auto alike = [&](const auto& distribution) {
    T numbers[kCount];
    draw(distribution, at::check_generator<at::CPUGeneratorImpl>(own), numbers, kCount);
    return std::equal(numbers, numbers + kCount, tensor.template const_data_ptr<T>());
  };
  tensor.exponential_(1, given);
  const bool exponentials = alike(kExponential);
  tensor.normal_(0, 1, given);
  return exponentials && alike(kNormal);
}

// Numbers of torch's default generator: the streams of exponential_ and normal_ on a tensor of one dimension. A call of
// either takes longer than a few numbers, which therefore come from the distributions directly.
template <class T>
class Numbers {
 public:
  explicit Numbers(const at::Tensor& like)
      : tensor_(at::empty_like(like)),
        numbers_(tensor_.mutable_data_ptr<T>()),
        generator_(at::get_generator_or_default<at::CPUGeneratorImpl>({}, at::detail::getDefaultCPUGenerator())) {}

  const T* exponential() {
    if (alike()) {
      draw(kExponential, generator_, numbers_, tensor_.numel());
    } else {
      tensor_.exponential_();
    }
    return numbers_;
  }

  const T* normal() {
    if (tensor_.numel() < kLong && alike()) {
      draw(kNormal, generator_, numbers_, tensor_.numel());
    } else {
      tensor_.normal_();
    }
    return numbers_;
  }

 private:
  static bool alike() {
    static const bool found = found_alike<T>();
    return found;
  }

  at::Tensor tensor_;
  T* numbers_;
  at::CPUGeneratorImpl* generator_;
};

// The place of the largest quotient, the first of equal ones; NaN counts as the largest. As multinomial draws one
// place.
template <class T>
int64_t largest(const T* weights, const T* exponentials, int64_t count) {
  int64_t place = 0;
  T most = weights[0] / exponentials[0];
  for (int64_t i = 1; i < count && !std::isnan(most); ++i) {
    const T quotient = weights[i] / exponentials[i];
    if (quotient > most || std::isnan(quotient)) {
      place = i;
      most = quotient;
    }
  }
  return place;
}

template <class T>
void draw_all(const DrawCoalitions& call) {
  const T* weights = call.weights.const_data_ptr<T>();
  bool* members = call.coalitions.mutable_data_ptr<bool>();
  Numbers<T> numbers(call.weights);
  std::vector<T> sorted(call.features);
  for (int64_t row = 0; row < call.count; ++row, members += call.features) {
    const int64_t size = largest(weights, numbers.exponential(), call.features);
    const T* values = numbers.normal();
    std::copy_n(values, call.features, sorted.begin());
    const auto threshold = sorted.begin() + (call.features - size - 1);
    std::nth_element(sorted.begin(), threshold, sorted.end());
    std::transform(values, values + call.features, members, [=](T value) { return value > *threshold; });
  }
}

at::Tensor draw_coalitions(const at::Tensor& probabilities, int64_t count) {
  const DrawCoalitions call(probabilities, count);
  visit_total(probabilities.scalar_type(), [&](auto type) { draw_all<decltype(type)>(call); });
  return call.coalitions;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusum, CPU, m) { m.impl("draw_coalitions", &draw_coalitions); }

}  // namespace fusum::cpu

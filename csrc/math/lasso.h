// The Lasso as scikit-learn fits it: cyclic coordinate descent that stops where scikit-learn's stops, after as many
// sweeps. Features that are zero at the optimum are ruled out on the way (gap safe screening: Fercoq et al., 2015).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/index.h"

// A team's threads run the same code. nvcc compiles it for the device alone: teams there are no host code.
#if defined(__CUDACC__)
#define FUSUM_TEAM __device__ __forceinline__
#else
#define FUSUM_TEAM inline
#endif

namespace fusum {

// The numbers of one example, or of all from the first on.
struct LassoData {
  double* columns;        // [features, samples], overwritten
  const double* values;   // [samples]
  const double* weights;  // [samples]
  double* target;         // [samples], work space, as the next three
  double* residual;       // [samples]
  double* norms;          // [features]; zero: the feature is left out
  double* slopes;         // [features]
  double* found;          // [features], the coefficients, zero at first
  int64_t samples;
  int64_t features;

  FUSUM_INLINE LassoData of(int64_t example) const {
    const int64_t sample = offset_of(example, samples);
    const int64_t feature = offset_of(example, features);
    return {columns + offset_of(feature, samples),
            values + sample,
            weights + sample,
            target + sample,
            residual + sample,
            norms + feature,
            slopes + feature,
            found + feature,
            samples,
            features};
  }
};

// One example's fit. A team has sum(count, term), which all its threads get, and each(count, body), which gives index i
// to the thread that sum gives it to. Both wait for all threads first: what one reads before, another changes after.
// Numbers that belong to no sample are computed by all alike.
template <class Team>
class LassoFit {
 public:
  FUSUM_TEAM LassoFit(Team team, const LassoData& data, double alpha, double tol)
      : team_(team), data_(data), alpha_(alpha * static_cast<double>(data.samples)), tol_(tol) {}

  // Whether the stopping rule was met. Coefficients are NaN where a number is not finite, or where nothing has weight.
  FUSUM_TEAM bool run(int64_t max_iter) {
    if (!std::isfinite(centre())) {
      for (int64_t j = 0; j < data_.features; ++j) {
        data_.found[j] = std::numeric_limits<double>::quiet_NaN();
      }
      return true;
    }
    bool done = stop();
    for (int64_t left = max_iter; left > 0 && !done; --left) {
      done = (sweep() || left == 1) && stop();
    }
    return done;
  }

 private:
  // Not fmax, which minds NaN and is slow on the CPU.
  FUSUM_TEAM static double larger(double a, double b) { return a > b ? a : b; }

  FUSUM_TEAM double* column(int64_t feature) const { return data_.columns + offset_of(feature, data_.samples); }

  FUSUM_TEAM double dot(const double* a, const double* b) const {
    return team_.sum(data_.samples, [=](int64_t i) { return a[i] * b[i]; });
  }

  FUSUM_TEAM void add(double factor, const double* column) const {
    double* residual = data_.residual;
    team_.each(data_.samples, [=](int64_t i) { residual[i] += factor * column[i]; });
  }

  // Columns and values less their means, times the roots of weights that sum to the number of samples: a plain fit
  // without an intercept is left. Their squares and what scales the weights, in one sum.
  FUSUM_TEAM double centre() {
    const double* weights = data_.weights;
    double* roots = data_.residual;
    const double sum = team_.sum(data_.samples, [=](int64_t i) { return weights[i]; });
    const double scale = static_cast<double>(data_.samples) / sum;
    team_.each(data_.samples, [=](int64_t i) { roots[i] = std::sqrt(weights[i] * scale); });
    double squares = 0;
    for (int64_t j = 0; j < data_.features; ++j) {
      data_.norms[j] = centre(column(j), sum, column(j));
      squares += data_.norms[j];
    }
    square_ = centre(data_.values, sum, data_.target);
    const double* target = data_.target;
    team_.each(data_.samples, [=](int64_t i) { roots[i] = target[i]; });
    return squares + square_ + scale;
  }

  FUSUM_TEAM double centre(const double* given, double sum, double* result) const {
    const double* roots = data_.residual;
    const double mean = dot(given, data_.weights) / sum;
    team_.each(data_.samples, [=](int64_t i) { result[i] = (given[i] - mean) * roots[i]; });
    return dot(result, result);
  }

  // Each coefficient in turn takes its best value, given the others. Whether none has moved much.
  FUSUM_TEAM bool sweep() const {
    double change = 0;
    double largest = 0;
    for (int64_t j = 0; j < data_.features; ++j) {
      const double norm = data_.norms[j];
      if (norm == 0) {
        continue;
      }
      const double before = data_.found[j];
      const double best = dot(column(j), data_.residual) + before * norm;
      const double after = std::copysign(larger(std::fabs(best) - alpha_, 0.0), best) / norm;
      if (after != before) {
        data_.found[j] = after;
        add(before - after, column(j));
      }
      change = larger(change, std::fabs(after - before));
      largest = larger(largest, std::fabs(after));
    }
    return largest == 0 || change <= tol_ * largest;
  }

  // Whether the duality gap is small. If not, features that are zero at the optimum are left out from now on.
  FUSUM_TEAM bool stop() const {
    double steepest = alpha_;
    double penalty = 0;
    for (int64_t j = 0; j < data_.features; ++j) {
      data_.slopes[j] = dot(column(j), data_.residual);
      steepest = larger(steepest, std::fabs(data_.slopes[j]));
      penalty += alpha_ * std::fabs(data_.found[j]);
    }
    const double scale = alpha_ / steepest;
    const double error = dot(data_.residual, data_.residual);
    const double gap = 0.5 * (1 + scale * scale) * error + penalty - scale * dot(data_.residual, data_.target);
    if (gap <= tol_ * square_) {
      return true;
    }
    const double radius = std::sqrt(2 * std::fabs(gap)) / alpha_;
    for (int64_t j = 0; j < data_.features; ++j) {
      const double norm = data_.norms[j];
      if (norm != 0 && 1 - std::fabs(data_.slopes[j]) / steepest > radius * std::sqrt(norm)) {
        add(data_.found[j], column(j));
        data_.found[j] = 0;
        data_.norms[j] = 0;
      }
    }
    return false;
  }

  Team team_;
  LassoData data_;
  double alpha_;
  double tol_;
  double square_ = 0;
};

}  // namespace fusum

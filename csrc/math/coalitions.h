// Rows of a model's input in which the features of a coalition are an example's and the others its baseline's.
#pragma once

#include "math/index.h"

namespace fusum {

// Where the elements of such rows come from. Each row has its coalition and its example; features has a row for every
// example, or one for all (feature_step 0).
template <class T>
struct Coalitions {
  const T* inputs;
  BaseRows<T> base;
  const int32_t* features;
  int64_t feature_step;
  const bool* members;
  int64_t count;  // features of a coalition
  const int64_t* which;
  const int64_t* examples;
  int64_t row_elements;

  FUSUM_INLINE const T* input_at(int64_t row, int64_t element) const {
    return inputs + offset_of(examples[row], row_elements) + element;
  }

  FUSUM_INLINE const int32_t* feature_at(int64_t row, int64_t element) const {
    return features + offset_of(examples[row], feature_step) + element;
  }

  FUSUM_INLINE const bool* coalition_of(int64_t row) const { return members + offset_of(which[row], count); }
};

}  // namespace fusum

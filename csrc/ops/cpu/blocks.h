// The loop of every CPU kernel: blocks of elements that fit the first-level cache, spread over threads, in vector code.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>

#include "math/index.h"
#include "ops/dtypes.h"

namespace fusum::cpu {

constexpr int64_t kBlock = 1024;
constexpr int64_t kGrain = 32768;  // element visits that are worth a thread

#if defined(__GNUC__) && defined(__x86_64__)
// The body is compiled a second time, inlined, for AVX2; without FMA, so that both give the same bits.
template <class Body>
[[gnu::target("avx2"), gnu::flatten]] void with_avx2(const Body& body) {
  body();
}

template <class Body>
void vectorised(const Body& body) {
  static const bool avx2 = __builtin_cpu_supports("avx2");
  avx2 ? with_avx2(body) : body();
}
#else
template <class Body>
void vectorised(const Body& body) {
  body();
}
#endif

// Calls body(first, count) for each block of the elements; visits is the work on one element.
template <class Body>
void for_blocks(int64_t elements, int64_t visits, const Body& body) {
  const int64_t blocks = (elements + kBlock - 1) / kBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kBlock * std::max<int64_t>(1, visits)));
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    vectorised([&] {
      for (int64_t block = begin; block < end; ++block) {
        body(block * kBlock, std::min(kBlock, elements - block * kBlock));
      }
    });
  });
}

// Calls body(row, element, place, count) for each row's part of a block; place counts from the block's first element.
// Loops over these parts say ivdep: operands do not overlap, and asking whether they do takes longer than a short row.
template <class Body>
void for_row_parts(int64_t first, int64_t count, int64_t row_elements, const Body& body) {
  int64_t row = first / row_elements;
  int64_t element = first % row_elements;
  for (int64_t place = 0; place < count; ++row, element = 0) {
    const int64_t part = std::min(count - place, row_elements - element);
    body(row, element, place, part);
    place += part;
  }
}

// The elements in the accumulation type: where they lie, or converted into buffer.
template <class T>
const Acc<T>* read(const T* source, int64_t count, Acc<T>* buffer) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return source;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      buffer[i] = static_cast<Acc<T>>(source[i]);
    }
    return buffer;
  }
}

// The baselines of a block of elements.
template <class T>
const Acc<T>* read(const BaseRows<T>& base, int64_t first, int64_t count, int64_t row_elements, Acc<T>* buffer) {
  if (base.element_step == 0) {
    std::fill_n(buffer, count, static_cast<Acc<T>>(*base.data));
    return buffer;
  }
  if (first / row_elements == (first + count - 1) / row_elements) {
    return read(base.at(first / row_elements, first % row_elements), count, buffer);
  }
  for_row_parts(first, count, row_elements, [&](int64_t row, int64_t element, int64_t place, int64_t part) {
    const T* source = base.at(row, element);
    for (int64_t i = 0; i < part; ++i) {
      buffer[place + i] = static_cast<Acc<T>>(source[i]);
    }
  });
  return buffer;
}

// A row of an operand that broadcasts: neighbours, or one element repeated.
template <class T>
void read_row(const T* source, bool repeats, int64_t count, Acc<T>* buffer) {
  if (repeats) {
    std::fill_n(buffer, count, static_cast<Acc<T>>(*source));
    return;
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = static_cast<Acc<T>>(source[i]);
  }
}

// A block of an operand that broadcasts: where it lies, if in one piece, else gathered row by row into buffer.
template <class T>
const Acc<T>* read(const Broadcast<T>& operand, int64_t first, int64_t count, Acc<T>* buffer) {
  const Steps& steps = operand.steps;
  const T* source = operand.data + steps.at(first);
  const int64_t row_elements = steps.dims == 1 ? first + count : steps.sizes[0];
  const int64_t step = steps.steps[0];
  if (step == 1 && first % row_elements + count <= row_elements) {
    return read(source, count, buffer);
  }
  int64_t next[Steps::kMost] = {};  // the place of the coming row in each outer dimension
  for (int64_t dim = 1, row = first / row_elements; dim < steps.dims; row /= steps.sizes[dim++]) {
    next[dim] = row % steps.sizes[dim];
  }
  for_row_parts(first, count, row_elements, [&](int64_t, int64_t element, int64_t place, int64_t part) {
    read_row(source, step == 0, part, buffer + place);
    source -= element * step;
    for (int dim = 1; dim < steps.dims; ++dim) {
      source += steps.steps[dim];
      if (++next[dim] < steps.sizes[dim]) {
        break;
      }
      source -= steps.sizes[dim] * steps.steps[dim];
      next[dim] = 0;
    }
  });
  return buffer;
}

// Whole numbers that are not from 0 to count - 1 raise, named, before they are used.
template <class I = int64_t>
void check_range(const char* name, const at::Tensor& index, int64_t count) {
  if (!index.defined()) {
    return;
  }
  const I* values = index.const_data_ptr<I>();
  const int64_t size = index.numel();
  bool outside = false;
  vectorised([&] {
    I least = 0;
    I most = 0;
    for (int64_t i = 0; i < size; ++i) {
      least = std::min(least, values[i]);
      most = std::max(most, values[i]);
    }
    outside = least < 0 || most >= count;
  });
  for (int64_t i = 0; outside && i < size; ++i) {
    TORCH_CHECK_INDEX(values[i] >= 0 && values[i] < count, name, ": got ", values[i], " at place ", i,
                      "; expected values from 0 to ", count - 1);
  }
}

}  // namespace fusum::cpu

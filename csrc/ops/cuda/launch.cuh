// How every CUDA kernel is launched, and how it reads and writes 16 bytes at a time where addresses allow.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>

#include <algorithm>
#include <cstdint>

#include "math/index.h"
#include "ops/dtypes.h"

namespace fusum::cuda {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerProcessor = 16;

// Width elements that travel together, in loads of at most 16 bytes.
template <class T, int Width>
struct alignas(sizeof(T) * Width < 16 ? sizeof(T) * Width : 16) Pack {
  T value[Width];
};

template <int Width, class T>
__device__ __forceinline__ Pack<T, Width> load(const T* source) {
  return *reinterpret_cast<const Pack<T, Width>*>(source);
}

template <class T, int Width>
__device__ __forceinline__ void store(T* target, const Pack<T, Width>& pack) {
  *reinterpret_cast<Pack<T, Width>*>(target) = pack;
}

// The baselines of Width elements of one row.
template <int Width, class T>
__device__ __forceinline__ Pack<T, Width> load(const BaseRows<T>& base, int64_t row, int64_t element) {
  CUDA_KERNEL_ASSERT(!base.index || (base.index[row] >= 0 && base.index[row] < base.count));
  const T* source = base.at(row, element);
  if (base.element_step != 0) {
    return load<Width>(source);
  }
  Pack<T, Width> pack;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    pack.value[i] = *source;
  }
  return pack;
}

// Width elements of an operand that broadcasts: neighbours, or one element repeated.
template <int Width, class T>
__device__ __forceinline__ Pack<T, Width> load(const Broadcast<T>& operand, int64_t element) {
  const T* source = operand.data + operand.steps.at(element);
  if (operand.steps.steps[0] != 0) {
    return load<Width>(source);
  }
  Pack<T, Width> pack;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    pack.value[i] = *source;
  }
  return pack;
}

template <class T>
bool aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Whether packs of Width elements stay within a row of the operand and lie where they can be loaded as one.
template <int Width, class T>
bool packed(const Broadcast<T>& operand) {
  const Steps& steps = operand.steps;
  bool fits = steps.sizes[0] % Width == 0;
  for (int dim = 1; dim < steps.dims && steps.steps[0] != 0; ++dim) {
    fits = fits && steps.steps[dim] % Width == 0;
  }
  return fits && (steps.steps[0] == 0 || aligned(operand.data));
}

// Calls body with the number of elements a thread takes at once: 16 bytes of T where rows and addresses allow, else 1.
template <class T, class Body, class... Others>
void with_width(int64_t row_elements, const Body& body, const T* first, const Others*... others) {
  constexpr int kWide = 16 / sizeof(T);
  if (row_elements % kWide == 0 && aligned(first) && (aligned(others) && ...)) {
    body(std::integral_constant<int, kWide>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

inline int64_t most_blocks() {
  int processors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return kBlocksPerProcessor * processors;
}

// Blocks for a loop of so many steps with a stride of the whole grid.
inline unsigned blocks_for(int64_t steps) {
  return static_cast<unsigned>(std::clamp<int64_t>((steps + kThreads - 1) / kThreads, 1, most_blocks()));
}

__device__ __forceinline__ int64_t first_step() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ __forceinline__ int64_t stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

}  // namespace fusum::cuda

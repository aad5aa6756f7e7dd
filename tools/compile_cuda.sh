#!/usr/bin/env bash
# Compiles every CUDA source to an object file, with no GPU and against any wheel of torch. Usage: compile_cuda.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
nvcc=$(command -v nvcc || true)
[ -n "$nvcc" ] || [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || nvcc="${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"
if [ -z "$nvcc" ]; then
  echo "compile_cuda: nvcc was not found, so the CUDA sources were not compiled"
  exit 0
fi

out=build/cuda
mkdir -p "$out/include/c10/cuda/impl"
# The one header that CPU wheels of torch leave out.
echo '#define C10_CUDA_BUILD_SHARED_LIBS' >"$out/include/c10/cuda/impl/cuda_cmake_macros.h"
torch=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
flags=(-c -O1 -std=c++20 -fmad=false --expt-relaxed-constexpr -Xcompiler -fPIC -Werror all-warnings
  -D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__
  -Icsrc -Ipython/fusum/ops "-isystem=$torch" "-isystem=$torch/torch/csrc/api/include" "-isystem=$out/include")
export nvcc out
compile() {
  local source=$1
  shift
  "$nvcc" "$@" "$source" -o "$out/$(basename "$source" .cu).o" && echo "compile_cuda: $source"
}
export -f compile
find csrc -name '*.cu' -print0 | sort -z |
  xargs -0 -P "$(nproc)" -I {} bash -c 'compile "$@"' compile {} "${flags[@]}"

"""Builds the compiled kernels where that is possible; where it is not, installs pure Python and records why."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# A fused multiply-add would make results depend on the processor; without trapping math the half types vectorise.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
# at::parallel_for runs on one thread where OpenMP is off at compile time; Apple's compiler does not bring it.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
NVCC_FLAGS = ["-O3", "-fmad=false"]

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    WITHOUT_TORCH = ""
except ImportError as error:
    BuildExtension = build_ext
    WITHOUT_TORCH = f"torch could not be imported while building ({error}): run pip install --no-build-isolation ."


def with_cuda() -> bool:
    """Whether this torch has CUDA and its compiler is at hand."""
    if WITHOUT_TORCH or torch.version.cuda is None or CUDA_HOME is None:
        return False
    return shutil.which("nvcc", path=str(Path(CUDA_HOME, "bin"))) is not None


def extension(cuda: bool) -> Extension:
    """The library of every source in csrc; without torch it only holds the name."""
    if WITHOUT_TORCH:
        return Extension("fusum._C", sources=[])
    found = sorted((ROOT / "csrc").rglob("*.cpp")) + (sorted((ROOT / "csrc").rglob("*.cu")) if cuda else [])
    others = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cu"))
    return (CUDAExtension if cuda else CppExtension)(
        "fusum._C",
        sources=[str(path.relative_to(ROOT)) for path in found],
        depends=[str(path.relative_to(ROOT)) for path in others],
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "python" / "fusum" / "ops")],
        extra_compile_args={"cxx": CXX_FLAGS + OPENMP, "nvcc": NVCC_FLAGS},
        extra_link_args=OPENMP,
    )


class BuildKernels(BuildExtension):
    """A build that may fail: the package then runs on its reference ops and can say why."""

    def run(self) -> None:
        cuda = with_cuda()
        reason = WITHOUT_TORCH or self._compile()
        if reason and cuda:
            print(f"fusum: {reason}; trying again without CUDA")
            vars(self.extensions[0]).update(vars(extension(cuda=False)))
            reason = self._compile()
        if reason:
            self.extensions = []
            self.distribution.ext_modules = []
            print(f"fusum: no compiled kernels: {reason}")
        self._record(reason)

    def _compile(self) -> str:
        compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
        if sys.platform != "win32" and shutil.which(compiler) is None:
            return f"no C++ compiler was found at install ({compiler}): install one, then fusum again"
        before = self.compiler, self.inplace  # a run that fails leaves them changed
        try:
            super().run()
        except (Exception, SystemExit) as error:  # compilers, ninja and torch's own checks fail in many ways
            self.compiler, self.inplace = before
            said = " ".join(str(error).split())[:400]
            return f"the kernels did not compile ({said}): pip install -v --no-build-isolation . shows more"
        return ""

    def _record(self, reason: str) -> None:
        record: dict[str, Any] = {"reason": reason}
        if not WITHOUT_TORCH:
            record["torch"] = torch.__version__
        in_source = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "python" / "fusum" if in_source else Path(self.build_lib) / "fusum"
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(record) + "\n")


setup(ext_modules=[extension(cuda=with_cuda())], cmdclass={"build_ext": BuildKernels})

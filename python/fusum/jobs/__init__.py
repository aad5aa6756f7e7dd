"""Offline jobs: explain whole tables from a file, resumably, ``fusum run job.toml`` or ``fusum.jobs.run(spec)``."""

from importlib.util import find_spec

missing = [name for name in ("pyarrow", "tqdm") if find_spec(name) is None]
if missing:
    raise ImportError(f"fusum.jobs needs {' and '.join(missing)}: pip install 'fusum[jobs]'")

from .run import Summary, run  # noqa: E402
from .spec import Input, JobError, Spec  # noqa: E402

__all__ = ["Input", "JobError", "Spec", "Summary", "run"]

"""``python -m fusum``: run a captum script on fusum, explain a whole table, or say what is in use."""

from __future__ import annotations

import argparse
import os
import platform
import runpy
import sys

import torch

from . import __version__, profile
from .engine.support import without_kernels
from .patch import patch, watch

_USAGE = """python -m fusum [--profile] script.py [args ...]
       python -m fusum [--profile] -m module [args ...]
       python -m fusum run job.toml [--help] [flags ...]
       python -m fusum info"""


def info() -> str:
    """Versions, and whether compiled kernels are in use or why not."""
    reason = without_kernels()
    return "\n".join(
        [
            f"fusum   {__version__}",
            f"torch   {torch.__version__}, {torch.get_num_threads()} threads",
            f"python  {platform.python_version()} on {platform.machine()}",
            f"cuda    {torch.cuda.get_device_name() if torch.cuda.is_available() else 'not available'}",
            "kernels in use" if reason is None else f"kernels not in use: {reason}",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; arguments behind the script or module are its own."""
    parser = argparse.ArgumentParser(prog="python -m fusum", usage=_USAGE, description=__doc__)
    parser.add_argument("--profile", action="store_true", help="at the end say what ran fused, what did not and why")
    parser.add_argument(
        "-m", dest="module", metavar="module", nargs=argparse.REMAINDER, help="run a module as a script"
    )
    parser.add_argument("script", nargs="?", help="a script that uses captum, or the word run or info")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="the script's own arguments")
    options = parser.parse_args(argv)
    if not options.module and options.script is None:
        parser.print_usage(sys.stderr)
        return 2
    if options.module is None and options.script == "info" and not os.path.exists("info"):
        print(info())
        return 0
    if options.module is None and options.script == "run" and not os.path.isfile("run"):
        from .jobs.cli import main as run_job  # needs packages that the rest does not

        return run_job(options.args)
    return _run(options.module or None, options.script, options.args, options.profile)


def _run(module: list[str] | None, script: str, args: list[str], wants_profile: bool) -> int:
    patch()
    if wants_profile:
        watch()
        profile.start()
    try:
        if module is not None:
            sys.argv = module
            _search_first(os.getcwd())
            runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [script, *args]
            _search_first(os.path.dirname(os.path.abspath(script)))
            runpy.run_path(script, run_name="__main__")
    finally:
        if wants_profile:
            print(profile.report(profile.stop()), file=sys.stderr)
    return 0


def _search_first(folder: str) -> None:
    """Look for modules in folder first, as Python does for a script, unless it was told not to (-P)."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


if __name__ == "__main__":
    sys.exit(main())

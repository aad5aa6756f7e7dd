"""``fusum run``: a thin face on ``fusum.jobs.run``; every key of a job is also a flag."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from typing import Any

from ..errors import ArgumentError
from .report import say
from .run import Summary, run
from .spec import Input, JobError, Spec, build, literal, read_toml, text

_EXAMPLE = """
a job file:
  model = "model.pt"
  data = "rows/*.parquet"
  output = "scores"
  id = "customer"
  method = "IntegratedGradients"
  target = "predicted"
  inputs = [{columns = ["age", "income"]}]
  [arguments]
  n_steps = 50

keys of inputs' tables (as flags --inputs '{columns = ["age", "income"]}', or --inputs age,income):
"""


def parser() -> argparse.ArgumentParser:
    """The flags, from the table of keys in spec.py."""
    keys = "\n".join(f"  {each.name:<12} {each.metadata['help']}" for each in fields(Input))
    found = argparse.ArgumentParser(
        prog="fusum run",
        description="Explain all rows of a table. An interrupted job goes on where it was: give the same command.",
        epilog=_EXAMPLE + keys,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    found.add_argument("job", nargs="?", metavar="job.toml", help="a file of keys; flags are put over them")
    found.add_argument("--dry-run", action="store_true", help="check everything, explain one batch, write nothing")
    found.add_argument("--overwrite", action="store_true", help="remove what an earlier job left in the output folder")
    for each in fields(Spec):
        options: dict[str, Any] = {"help": f"key {each.name}: {each.metadata['help']}"}
        if each.name in ("arguments", "inputs"):
            options |= {"action": "append", "metavar": "NAME=VALUE" if each.name == "arguments" else "COLUMNS"}
        elif isinstance(each.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        found.add_argument(
            f"--{each.name.replace('_', '-').replace('arguments', 'argument')}", dest=each.name, **options
        )
    return found


def spec_of(given: dict[str, Any]) -> Spec:
    """The job of flags, and of the file they name; raises ArgumentError."""
    keys = read_toml(given.pop("job")) if "job" in given else {}
    for pair in given.pop("arguments", []):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ArgumentError(f"argument: got {pair!r}; expected NAME=VALUE")
        keys["arguments"] = {**keys.get("arguments", {}), name.strip(): literal(value.strip())}
    as_text = {each.name for each in fields(Spec) if each.metadata["check"] is text}
    for name, value in given.items():
        if isinstance(value, list):
            keys[name] = [literal(item) for item in value]
        else:
            keys[name] = literal(value) if isinstance(value, str) and name not in as_text else value
    return build(Spec, keys)


def main(argv: list[str] | None = None) -> int:
    """Run a job; 0 if it was done, 1 if it stopped, 2 if it could not begin."""
    given = vars(parser().parse_args(argv))
    options = {name: given.pop(name, False) for name in ("dry_run", "overwrite")}
    try:
        _say(run(spec_of(given), **options))
    except (ArgumentError, JobError) as error:
        print(f"fusum run: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except KeyboardInterrupt:
        print("fusum run: interrupted; the same command goes on with what is left", file=sys.stderr)
        return 130
    return 0


def _say(summary: Summary) -> None:
    """The last line: JSON where there is no terminal, words where there is one."""
    if not sys.stderr.isatty():
        say("summary", **asdict(summary), rows_per_second=round(summary.rows_per_second, 1))
        return
    for path, reason in summary.skipped.items():
        print(f"skipped {path}: {reason}")
    words = f"{summary.rows} rows in {summary.seconds:.1f} s ({summary.rows_per_second:,.0f} rows/s)"
    words += f", {summary.rejected} of them rejected" if summary.rejected else ""
    if summary.columns:
        columns = "\n".join(f"  {name}: {kind}" for name, kind in summary.columns.items())
        print(f"tried with {words}; nothing was written. The output's columns:\n{columns}")
    else:
        before = f"; {summary.before} rows were done before" if summary.before else ""
        print(f"{words}{before}; {summary.parts} parts in {summary.output}/parts")

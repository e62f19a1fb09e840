"""Jobs as commands: run a job from flags, overrides and a YAML file, print its result, and return an exit code.

`main` is the entry of jobs/*.py, for spark-submit, and of the command `sparkdiff` where the extra `cli` is not installed: it
needs no package beyond those that training and writing back need. Its flags are those of sparkdiff/cli/jobs.py.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.cli import starting
from sparkdiff.cli.config import COMMANDS, Config, command_of, load_config, model_and_overrides
from sparkdiff.cli.output import OFFERS
from sparkdiff.data.loading import source_of
from sparkdiff.errors import DONE, INTERRUPTED, InputError, run_for_exit_code
from sparkdiff.improvement.improvement_options import WHY_REFUSED, ImprovementSettings
from sparkdiff.machine import paths
from sparkdiff.machine.secrets import HIDDEN, redacted
from sparkdiff.options import Options
from sparkdiff.report.run_report import REPORT

FLAGS = {
    "data": "data.train.path",
    "label": "fineTuner.labelCol",
    "group": "fineTuner.groupCol",
    "time": "fineTuner.timeCol",
    "output": "output.path",
    "budget": "improver.budget",
}
"""Settings that have a flag for their text, by the flag's name."""
FLAGS_OF = {
    "finetune": ("data", "format", "options", "label", "group", "time", "output"),
    "search": ("data", "format", "options", "output"),
    "grow": ("data", "format", "options", "label", "group", "time", "output"),
    "improve": ("data", "format", "options", "label", "group", "time", "output", "budget"),
}
"""Flags of each command that runs a job."""


def main(command: str, argv: Sequence[str] | None = None) -> int:
    """Run a job by the arguments of a script and return its exit code, as the command of this name does."""
    name = None if argv is None else f"sparkdiff {command}"  # None: the name of the script
    parser = argparse.ArgumentParser(name, description=f"Runs what `sparkdiff {command}` runs.", allow_abbrev=False)
    parser.add_argument(
        "words", nargs="*", metavar="word", help="the model, and settings as section.key=value (over flags and file)"
    )
    parser.add_argument("--config", help="YAML file of the job")
    for flag in FLAGS_OF[command]:
        parser.add_argument(f"--{flag}", help=f"short for {FLAGS.get(flag, f'data.train.{flag}')}=...")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print only the result on stdout, as JSON")
    return run_for_exit_code(lambda: run_job(command, **vars(parser.parse_intermixed_args(argv))))


def run_job(
    command: str,
    config: str | None,
    words: Sequence[str],
    *,
    as_json: bool,
    format: str | None = "",
    options: str | None = "",
    **flags: str | None,
) -> int:
    """Load the settings of a job, run the job, print its result, and return the exit code.

    Args:
        command: the command that the user called.
        config: the YAML file; None without one.
        words: the model, if it is given here, and overrides `section.key=value`.
        as_json: print only the result on stdout, as one JSON object, and everything else on stderr.
        format, options: format and reader options (a JSON object) of the training rows.
        flags: values of flags by the names in `FLAGS`; None for flags that are not set.

    Raises:
        InputError: --config is no local file, or the settings belong to another command.
    """
    model, overrides = model_and_overrides(words)
    named = {"pipeline": model, **{FLAGS[name]: text for name, text in flags.items()}}
    settings = {place: text for place, text in named.items() if text is not None}
    if format or options:
        rows = source_of(flags.get("data"), format or "", options or "")
        overrides[:0] = [f"data.train.{key}={json.dumps(rows[key])}" for key in rows if key != "path" and rows[key]]
    path = None if config is None else paths.local(config)
    if config is not None and path is None:
        raise InputError(f"--config {config} must be a file on the file system of this machine")
    loaded = load_config(path, overrides, settings, command)
    if (right := loaded.command) != command:
        sections = {name: section for section, name in COMMANDS.items()}
        found = f"a section {sections[right]!r}" if right in sections else f"no section {sections[command]!r}"
        raise InputError(f"the job has {found}: run `sparkdiff {right}` instead")
    try:
        with _all_on_stderr() if as_json else contextlib.nullcontext():
            summary = starting.run(loaded)
    except KeyboardInterrupt:
        print(f"interrupted. {_way_on(command_of(loaded))}", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps(_result(summary, loaded.where), indent=2))
    else:
        print(f"\n{summary}", *_results(loaded, kept=summary.decision.startswith("kept")), sep="\n")
    return DONE


@contextlib.contextmanager
def _all_on_stderr() -> Iterator[None]:
    """Send stdout to stderr within this context, including output of native code and of processes that are started,
    like Java.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # output of native code that is still in C's buffers
        os.dup2(stdout, 1)
        os.close(stdout)


def _result(found: Any, where: str) -> dict[str, Any]:
    """The part of a finished job's summary that a calling program needs; summary.json has the rest."""
    told = found.asdict() if hasattr(found, "asdict") else found.toDict()
    where = redacted(where)
    names = (
        "decision",
        "reason",
        "metric",
        "metricDirection",
        "metrics",
        "fresh",
        "gain",
        "gainInterval",
        "p",
        "warnings",
    )
    return {
        "output": where,
        "model": f"{where}/model",
        "accepted": not told["decision"].startswith("kept"),
        **{n: told[n] for n in names if n in told},
    }


def _results(job: Config, *, kept: bool) -> list[str]:
    """Lines on a finished job: the places of its results, and the command to run next."""
    output, where = jvm.folder("output", job.where), redacted(job.where.removeprefix(f"{os.getcwd()}/"))
    refused = [name for name in WHY_REFUSED if job.options.get(name) not in (None, getattr(Options(), name))]
    words = (
        [
            "improve",
            *job.given,
            f"{FLAGS['budget']}={ImprovementSettings.budget}",
            f"{FLAGS['output']}={where}-improved",
        ]
        if kept and job.command == "finetune" and not (refused or HIDDEN in command_of(job) or "runId" in job.options)
        else ["plan", where]
        if kept or not os.path.exists(job.pipeline)
        else ["diff", job.pipeline.removeprefix(f"{os.getcwd()}/"), where]
    )
    return [
        f"saved {where}/model (plain Spark ML)",
        *(f"offer: {where}/{OFFERS}/{name}" for name in jvm.stores.names(output / OFFERS)),
        *[f"report: {where}/{REPORT}"] * jvm.stores.exists(output / REPORT),
        *[f"next: {shlex.join(['sparkdiff', *words])}"] * (HIDDEN not in where),
    ]


def _way_on(command: str) -> str:
    """A sentence on how to continue an interrupted job."""
    on = "goes on with what is cached and from the last checkpoint"
    return f"The same command {on}." if HIDDEN in command else f"In the same folder, this {on}:\n  {command}"

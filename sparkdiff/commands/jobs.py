"""Commands that run a job: finetune, search, grow and improve."""

import contextlib
import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from sparkdiff.commands.flags import INTERRUPTED, AsJson, Data, Group, Label, Output, Text, Time
from sparkdiff.errors import InputError
from sparkdiff.machine.secrets import HIDDEN


def finetune(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as fineTuner.maxEpochs=50; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fine-tune a pipeline with the settings of flags, overrides or a YAML file, and write a run folder."""
    _run_job("finetune", config, overrides, {
        "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group, "fineTuner.timeCol": time,
        "output.path": output,
    }, as_json=as_json)  # fmt: skip


def search(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as search.numTrials=50; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of a pipeline as the section `search` of a YAML file says, and write a run folder.

    A killed search continues when the same command is run again.
    """
    _run_job("search", config, overrides, {
        "data.train.path": data, "output.path": output,
    }, as_json=as_json)  # fmt: skip


def grow(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as grower.rounds=3; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Grow a pipeline that ends in a linear stage as the section `grower` of a YAML file says, and write a run folder.

    A killed growth continues when the same command is run again.
    """
    _run_job("grow", config, overrides, {
        "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group, "fineTuner.timeCol": time,
        "output.path": output,
    }, as_json=as_json)  # fmt: skip


def improve(
    model: Annotated[
        Text, typer.Argument(help="Folder of a saved PipelineModel; or the first section.key=value of a job's file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as improver.keepForm=true; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    budget: Annotated[
        Text, typer.Option(help="Time for all that is tried: 90s, 30m, 2h; or passes over the rows: '300 passes'.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Improve a pipeline within a budget by every available method; write a run folder with the best and other offers.

    A killed improvement continues when the same command is run again. Ctrl-C ends it with the best so far.
    """
    given = [*([model] if model is not None else []), *(overrides or [])]
    path = given.pop(0) if given and not _is_override(given[0]) else None
    _run_job("improve", config, given, {
        "pipeline": path, "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group,
        "fineTuner.timeCol": time, "output.path": output, "improver.budget": budget or (None if config else "30m"),
    }, as_json=as_json)  # fmt: skip


def _is_override(word: str) -> bool:
    """True if an argument is an override section.key=value, perhaps misspelt; False if it is a path, which may contain
    `=`.
    """
    from sparkdiff.job.config import SECTIONS

    return "=" in word and ("/" not in word or re.split("[.=]", word)[0] in SECTIONS)


def _run_job(
    command: str, config: str | None, overrides: Sequence[str] | None, flags: Mapping[str, str | None], *, as_json: bool
) -> None:
    """Load the settings of a job, run the job, and print its result.

    Args:
        command: the command that the user called.
        config: the YAML file; None without one.
        flags: values of flags by `section.key`; None for flags that are not set.
        as_json: print only the result on stdout, as one JSON object, and everything else on stderr.

    Raises:
        InputError: --config is no local file, or the settings belong to another command.
    """
    from sparkdiff import job
    from sparkdiff.machine.paths import local

    path = None if config is None else local(config)
    if config is not None and path is None:
        raise InputError(f"--config {config} must be a file on the file system of this machine")
    settings = job.load_config(path, overrides or [], {key: text for key, text in flags.items() if text is not None})
    if (right := settings.command) != command:
        sections = {name: section for section, name in job.COMMANDS.items()}
        found = f"a section {sections[right]!r}" if right in sections else f"no section {sections[command]!r}"
        raise InputError(f"the job has {found}: run `sparkdiff {right}` instead")
    try:
        with _all_on_stderr() if as_json else contextlib.nullcontext():
            found = job.run(settings)
    except KeyboardInterrupt:
        print(f"interrupted. {_way_on(job.command_of(settings))}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(_result(found, settings.where), indent=2))
    else:
        print(f"\n{found}\nsaved {settings.where}/model (plain Spark ML)")


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


def _way_on(command: str) -> str:
    """A sentence on how to continue an interrupted job."""
    on = "goes on with what is cached and from the last checkpoint"
    return f"The same command {on}." if HIDDEN in command else f"In the same folder, this {on}:\n  {command}"

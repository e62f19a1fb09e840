"""Commands that run a job: finetune, search, grow and improve."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sparkdiff.cli.flags import AsJson, Config, Data, Format, Group, Label, Output, ReaderOptions, Text, Time, Words
from sparkdiff.improvement.improvement_options import ImprovementSettings


def finetune(
    words: Words = None,
    config: Config = None,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pipeline with the settings of flags, overrides or a YAML file, and write a run folder."""
    _run(
        "finetune",
        config,
        words,
        as_json,
        data=data,
        format=format,
        options=options,
        label=label,
        group=group,
        time=time,
        output=output,
    )


def search(
    words: Words = None,
    config: Config = None,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of an unfitted pipeline as the section `search` of a YAML file says, and write a run folder.

    A killed search continues when the same command is run again.
    """
    _run("search", config, words, as_json, data=data, format=format, options=options, output=output)


def grow(
    words: Words = None,
    config: Config = None,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Grow a pipeline that ends in a linear stage, and write a run folder.

    A killed growth continues when the same command is run again.
    """
    _run(
        "grow",
        config,
        words,
        as_json,
        data=data,
        format=format,
        options=options,
        label=label,
        group=group,
        time=time,
        output=output,
    )


def improve(
    words: Words = None,
    config: Config = None,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    budget: Annotated[
        Text,
        typer.Option(
            help="Time for all that is tried: 90s, 30m, 2h; or passes over the rows: '300 passes'.",
            show_default=ImprovementSettings.budget,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Improve a pipeline within a budget by every available method; write a run folder with the best and other offers.

    A killed improvement continues when the same command is run again. Ctrl-C ends it with the best so far.
    """
    _run(
        "improve",
        config,
        words,
        as_json,
        data=data,
        format=format,
        options=options,
        label=label,
        group=group,
        time=time,
        output=output,
        budget=budget,
    )


def _run(command: str, config: str | None, words: Sequence[str] | None, as_json: bool, **flags: str | None) -> None:
    from sparkdiff.cli.scripts import run_job

    raise typer.Exit(run_job(command, config, words or (), as_json=as_json, **flags))

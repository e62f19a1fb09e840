"""Commands that run a job: finetune, search, grow and improve."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sparkdiff.cli.flags import AsJson, Data, Group, Label, Output, Text, Time


def finetune(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="section.key=value, such as fineTuner.maxEpochs=50; overrides the flags and the YAML file."
        ),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None,
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pipeline with the settings of flags, overrides or a YAML file, and write a run folder."""
    _run("finetune", config, overrides, as_json, data=data, label=label, group=group, time=time, output=output)


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
    _run("search", config, overrides, as_json, data=data, output=output)


def grow(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as grower.rounds=3; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None,
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Grow a pipeline that ends in a linear stage as the section `grower` of a YAML file says, and write a run folder.

    A killed growth continues when the same command is run again.
    """
    _run("grow", config, overrides, as_json, data=data, label=label, group=group, time=time, output=output)


def improve(
    model: Annotated[
        Text, typer.Argument(help="Folder of a saved PipelineModel; or the first section.key=value of a job's file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="section.key=value, such as improver.keepForm=true; overrides the flags and the YAML file."
        ),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None,
    label: Label = None,
    group: Group = None,
    time: Time = None,
    output: Output = None,
    budget: Annotated[
        Text, typer.Option(help="Time for all that is tried: 90s, 30m, 2h; or passes over the rows: '300 passes'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Improve a pipeline within a budget by every available method; write a run folder with the best and other offers.

    A killed improvement continues when the same command is run again. Ctrl-C ends it with the best so far.
    """
    words = [*([] if model is None else [model]), *(overrides or [])]
    _run(
        "improve", config, words, as_json, data=data, label=label, group=group, time=time, output=output, budget=budget
    )


def _run(command: str, config: str | None, words: Sequence[str] | None, as_json: bool, **flags: str | None) -> None:
    from sparkdiff.cli.scripts import run_job

    raise typer.Exit(run_job(command, config, words or (), as_json=as_json, **flags))

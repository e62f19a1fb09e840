"""Commands that look at saved pipelines: plan, compact, verify and diff."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Optional

import typer

from sparkdiff.cli.flags import (
    AsJson,
    Data,
    Format,
    Group,
    Label,
    Model,
    ReaderOptions,
    Text,
    Time,
    load_models_and_rows,
    schema_of,
)
from sparkdiff.errors import FAILED, NOT_STRICT, InputError
from sparkdiff.options import FIELDS, Options

_HELP = {
    name: f"{text[:1].upper()}{text[1:]}. May be repeated."
    for name, text in ((field.name, field.metadata["help"]) for field in FIELDS.values())
}
"""Help texts of flags that name an option's stages or parameters."""


def plan(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            metavar="MODEL",
            help="Folder of a saved model or of a run; with --cost also settings, such as fineTuner.maxEpochs=50.",
            show_default=False,
        ),
    ] = None,
    freeze: Annotated[Optional[list[str]], typer.Option(help=_HELP["freeze"])] = None,  # noqa: UP045
    reference: Annotated[Optional[list[str]], typer.Option(help=_HELP["reference"])] = None,  # noqa: UP045
    target: Annotated[Optional[list[str]], typer.Option(help=_HELP["target"])] = None,  # noqa: UP045
    unfreeze: Annotated[Optional[list[str]], typer.Option(help=_HELP["unfreeze"])] = None,  # noqa: UP045
    schema: Annotated[
        Text, typer.Option(help="Schema of the data, as DDL (`a double, b string`) or as JSON of a StructType.")
    ] = None,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option(help="Exit with code 3 if a stage stays in Spark.")] = False,
    draw: Annotated[Text, typer.Option(help="File to write a picture of the plan to, as SVG.")] = None,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Also tell Spark jobs, cache size and time of a fine-tuning of --data. Writes nothing."
        ),
    ] = False,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    label: Label = None,
    group: Group = None,
    time: Time = None,
) -> None:
    """Show which stages of a fitted pipeline would train, and why the others would not. Runs no Spark job without --cost."""
    from sparkdiff.cli.config import model_and_overrides

    model, overrides = model_and_overrides(words or ())
    if model is None:
        raise InputError("plan needs a model: name its folder as the first argument, such as models/churn")
    _check_cost(cost, data, {"--label": label, "--group": group, "--time": time, "fineTuner": overrides})
    module = "sparkdiff.fine_tuning.costs" if cost else "sparkdiff.pipeline.plan"
    [(_, fitted)], rows = load_models_and_rows([model], module, "plan", data, format, options)
    from sparkdiff.pipeline.plan import plan as plan_of

    known = None if schema is None else schema_of(schema)
    wishes = {"freeze": freeze, "reference": reference, "target": target, "unfreeze": unfreeze}
    found = plan_of(fitted, schema=known, **{option: names or () for option, names in wishes.items()})
    if draw is not None:
        found.draw().save(draw)
    if cost:
        told = _cost(fitted, rows, wishes, {"labelCol": label, "groupCol": group, "timeCol": time}, overrides)
        plan_ = json.loads(found.toJSON())
        print(json.dumps({**plan_, "cost": json.loads(told.toJSON())}, indent=2) if as_json else f"{found}\n\n{told}")
    else:
        print(found.toJSON() if as_json else found)
    if strict and any(s.role == "referenced" for s in found.stages):
        raise typer.Exit(NOT_STRICT)


def _check_cost(cost: bool, data: str | None, given: Mapping[str, Any]) -> None:
    if cost and data is None:
        raise InputError("--cost needs the rows that would train: --data rows.parquet")
    if not cost and (data is not None or any(given.values())):
        name = next((name for name, value in given.items() if value), "--data")
        raise InputError(f"{name} is for the cost of a fine-tuning: add --cost")


def _cost(
    model: Any, rows: Any, wishes: Mapping[str, Any], columns: Mapping[str, str | None], overrides: Sequence[str]
) -> Any:
    """The expected cost of fine-tuning a pipeline with these options (see `FineTuner.cost`)."""
    from sparkdiff.cli.config import options_of
    from sparkdiff.estimators.fine_tuner import FineTuner

    named = {name: value for name, value in {**wishes, **columns}.items() if value}
    return FineTuner(model, **{**named, **options_of(overrides)}).cost(rows)


def compact(
    model: Model,
    output: Annotated[
        Text, typer.Option(help="New folder for the smaller pipeline; without it, only the plan is shown.")
    ] = None,
    keepCols: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--keepCols",
            help="Column that must stay; may be repeated. By default those that no later stage reads, and the last stage's.",
        ),
    ] = None,
    schema: Annotated[
        Text, typer.Option(help="Schema of the data, as DDL (`a double, b string`) or as JSON of a StructType.")
    ] = None,
    as_json: AsJson = False,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
) -> None:
    """Fold a pipeline into fewer stages with the same outputs, and show which stages go and why the rest stay.

    The pipeline written to --output is loaded again and, with --data, compared on these rows with the one in memory.
    """
    from sparkdiff.evaluation.model_saving import new_folder, save

    folder = None if output is None else new_folder("--output", output)
    [(_, fitted)], rows = load_models_and_rows(
        [model], "sparkdiff.serving.compact.compact", "compact", data, format, options
    )
    from sparkdiff.serving.compact.compact import compact as compacted, compact_plan

    known = schema_of(schema) if schema is not None else None if rows is None else rows.schema
    found = compact_plan(fitted, keepCols, schema=known)
    print(found.toJSON() if as_json else found)
    if folder is not None:
        save(compacted(fitted, keepCols, schema=known), folder, rows)
        if not as_json:
            print(f"saved {folder} (plain Spark ML)")


def verify(model: Model, data: Data, format: Format = "", options: ReaderOptions = "") -> None:
    """Compare the outputs of Spark and of the translated network, column by column. Exits with code 1 at a mismatch."""
    [(_, fitted)], rows = load_models_and_rows([model], "sparkdiff.pipeline.parity", "verify", data, format, options)
    from sparkdiff.pipeline.parity import verify as parity_of

    parity = parity_of(fitted, rows)
    for column, difference in parity.maxRelDiff.items():
        print(f"{column:<30} {difference:.3e}")
    print(parity)
    if not parity.ok:
        raise typer.Exit(FAILED)


def diff(
    old: Model,
    new: Annotated[str, typer.Argument(help="Folder of the model to compare with.")],
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    sample: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Largest number of rows to predict on; the same rows are used each time."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which stages, Params and weights of two models differ, and how their predictions differ on the same rows.

    The exit code is 0 whether or not they differ; --json prints it as "same". Relative differences are divided by the larger
    value.
    """
    module = (
        "sparkdiff.evaluation.prediction_differences" if data is not None else "sparkdiff.evaluation.model_differences"
    )
    [(where, before), (there, after)], rows = load_models_and_rows([old, new], module, "diff", data, format, options)
    from sparkdiff.data.cache import root
    from sparkdiff.evaluation.model_differences import between

    found = between(before, after, root(Options()), paths=(where, there))
    if rows is not None:
        from sparkdiff.evaluation.prediction_differences import predictions

        found = dataclasses.replace(found, predictions=predictions(before, after, rows, sample))
    print(found.toJSON() if as_json else found)

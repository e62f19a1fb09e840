"""Atomic saving of a model to a new folder, completely or not at all, and the check that a saved pipeline gives the same
outputs as the one in memory.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, ParityError, SparkdiffError, warn
from sparkdiff.evaluation.prediction_differences import FIRST, TABLE, compare_loaded, compare_outputs
from sparkdiff.machine import atomic_files
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.store import files

WAY = (
    "A stage is saved as its class says: DefaultParamsWritable saves its Params and nothing else. Keep in Params what the stage "
    "needs, or give its class a write() and a read() that keep it; if the class is Spark's own, report this as a bug"
)


def new_folder(option: str, given: str) -> Path:
    """The path of the folder on this machine that an option names, which must not exist yet.

    Raises:
        InputError: the folder exists, is not on this machine, or cannot be written.
    """
    path = files.new_path(option, given)
    jvm.check_writable(option, given, path)
    return path


@jvm.interruptible()
def save(model: Any, folder: Path, rows: DataFrame | None) -> None:
    """Save a fitted pipeline under a temporary name, check it, and rename it to `folder`; after a failure, nothing is
    left.

    Args:
        rows: raw rows, on which the saved pipeline is compared with the one in memory; None: the saved pipeline is only
            loaded.

    Raises:
        InputError: the pipeline in memory fails on the rows, or returns none of them.
        SparkdiffError: the pipeline cannot be written; the message gives the reason.
        ParityError: the saved pipeline cannot be loaded, or its outputs differ.
    """
    try:
        with (
            atomic_files.remove_empty_folders_above(folder),
            files.room("the pipeline", folder, "free some space, or choose a folder on a disk with more space"),
            atomic_files.new_folder(folder) as temporary,
        ):
            folder.parent.mkdir(parents=True, exist_ok=True)
            model.write().save(f"file://{temporary}")
            compared = check_saved(model, temporary, None if rows is None else lambda: rows)
            if "why" in compared:
                raise InputError(f"the saved pipeline cannot be compared: {compared['why']}; pass rows that it accepts")
            if rows is not None and compared.get("rows") == 0:
                raise InputError(
                    f"the pipeline returns none of the first {FIRST:,} rows, so that nothing can be compared: pass others"
                )
    except (OSError, *jvm.SparkError) as e:
        raise SparkdiffError(
            f"the pipeline cannot be written to {folder}: {jvm.cause(e)}; choose another folder"
        ) from e


def check_saved(model: Any, folder: Path, rows: Callable[[], DataFrame] | None) -> dict[str, Any]:
    """Load a pipeline that was just saved, and compare its outputs with those of `model`, the tested pipeline in
    memory.

    Args:
        folder: the folder of the saved pipeline.
        rows: function that returns raw rows; None: only load the pipeline.

    Returns:
        The result for the summary of a run; see `RunRecord.saved`.

    Raises:
        ParityError: the saved pipeline cannot be loaded, or an output differs; the message names the stage, the column
            and the number of rows.
    """

    def load() -> Any:
        try:
            return jvm.load_model(folder)
        except Exception as e:  # a custom stage may raise anything
            raise ParityError(f"{model.uid} was saved, but cannot be loaded: {jvm.message(e)}. {WAY}") from e

    with ThreadPoolExecutor(1) as thread:  # Spark runs the pipeline in memory meanwhile
        loading = thread.submit(load).result if jvm.threads_share_session() else functools.cache(load)
        if rows is None:
            loading()
            return {}
        try:
            df = rows()
            found, compared = compare_loaded(model, loading, df)
        except Exception as e:
            loading()  # what cannot be loaded is worse than what cannot be compared
            return {"rows": 0, "columns": 0, "leftOut": [], "why": f"the pipeline in memory fails: {jvm.message(e)}"}
        loaded = loading()
    chance = _columns_of_chance(loaded, folder, df) if found else set()
    if found.keys() <= chance:
        return compared | {
            "columns": compared["columns"] - len(found.keys() - {TABLE}),
            "leftOut": [*compared["leftOut"], *found],
        }
    olds, news = ([leaf for _, leaf in flatten(m)] for m in (model, loaded))
    pipelines = ([PipelineModel(x[: n + 1]) for x in (olds, news)] for n in range(len(olds)))
    parts = ((one.stages[-1], compare_outputs(one, other, df)[0]) for one, other in pipelines)
    stage, found = next(((stage, part) for stage, part in parts if not part.keys() <= chance), (olds[-1], found))
    what = "; ".join(f"{name if name == TABLE else f'column {name!r}'} {text}" for name, text in found.items())
    raise ParityError(
        f"the saved pipeline gives other outputs than the one in memory, which was tested: {stage.uid} ({type(stage).__name__}): "
        f"{what}. {WAY}"
    )


def not_compared(result: Mapping[str, Any]) -> list[str]:
    """The warning that a saved pipeline could be loaded, but not compared; nothing if it was compared.

    Args:
        result: what `check_saved` returned.
    """
    return [f"the saved pipeline was loaded, but not compared: {result['why']}"] if "why" in result else []


def _columns_of_chance(loaded: Any, folder: Path, df: DataFrame) -> set[str]:
    """Columns of Spark's own stages that differ between two loads of the same saved pipeline; `TABLE` if the table
    differs.

    For example, a DistributedLDAModel sums its topics in no fixed order.
    """
    graph = graph_of(loaded)
    writers = {name: graph.vertices[i].stage for name, i in graph.writers.items()}
    found, _ = compare_outputs(loaded, jvm.load_model(folder), df)
    return {name for name in found if name == TABLE or is_plain(writers.get(graph.casefold(name)))}


def check_what_is_saved(
    model: Any, rows: Callable[[], DataFrame], folder: Callable[[], Path | None], summary: Any
) -> None:
    """Save the model of a fit temporarily, run `check_saved`, add the result to the summary, and warn if there is a
    difference.

    Args:
        rows: function that returns raw rows.
        folder: function that returns the folder in which the model is saved temporarily.
    """
    try:
        with jvm.temporary(".saved-", folder()) as path:
            model.write().save(jvm.stores.address(path / "model"))
            compared = check_saved(model, path / "model", rows)
        summary.saved.update(compared)
        summary.warnings.extend(not_compared(compared))
    except ParityError as e:
        summary.saved.update(rows=0, columns=0, leftOut=[], differs=str(e))
        summary.warnings.append(str(e))
        warn(str(e))
    except Exception as e:  # the user gets the same error when saving the model
        summary.saved.update(rows=0, columns=0, leftOut=[], why=f"the pipeline cannot be saved: {jvm.message(e)}")

"""The steps of a job that searches settings: load, search, and write the run folder."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from pyspark.ml import Estimator
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.cli import search_section as section
from sparkdiff.cli.config import KEEPING, Config, command_of, request_of
from sparkdiff.cli.output_writing import write_run_folder
from sparkdiff.cli.steps import load_rows_and_pipeline, own_id
from sparkdiff.cli.tracking import Tracking, activate_callbacks
from sparkdiff.data.loading import load_model, model_path
from sparkdiff.data.splits import TRAIN
from sparkdiff.errors import InputError
from sparkdiff.estimators.fine_tuner import FineTuner
from sparkdiff.estimators.search import Search
from sparkdiff.evaluation.model_saving import check_saved
from sparkdiff.jvm import stores
from sparkdiff.machine import atomic_files, secrets
from sparkdiff.options import Options
from sparkdiff.report.run_record import versions
from sparkdiff.report.run_report import write_report
from sparkdiff.search.search_options import FIELDS
from sparkdiff.search.search_run import BY_NUMBER
from sparkdiff.search.search_summary import SearchSummary
from sparkdiff.store.lease import Lease
from sparkdiff.store.saved_digests import hash_of_folder


@jvm.interruptible()
def run(config: Config, lease: Lease, spark: SparkSession) -> SearchSummary:
    """Run the job. Its trials (the study) are stored next to the output until the run is written, so that a killed job
    continues.

    Raises:
        InputError: the pipeline is already fitted, or the space names no Param of it.
    """
    with activate_callbacks(config.tracking) as tracking:
        return _run(config, lease, spark, tracking)


def _run(config: Config, lease: Lease, spark: SparkSession, tracking: Tracking) -> SearchSummary:
    rows, pipeline, _ = load_rows_and_pipeline(config, spark, print)
    search, study = search_of(config, pipeline)
    search.callbacks = tracking.listeners
    search.job = {"command": command_of(config), "output": config.where, "id": search.uid}
    model = search.fit(rows[TRAIN])

    def fill(folder: Path) -> None:
        model.pipelineModel.write().save(stores.address(folder / "model"))
        stores.fetch(folder / "model")
        model.summary.saved.update(check_saved(model.pipelineModel, folder / "model", lambda: rows[TRAIN]))
        model.trials.to_csv(folder / "trials.csv", index=False)
        told = model.summary.toDict() | {
            "search": secrets.hidden(config.search or {}),
            "options": secrets.hidden(Options.of(config.options).asdict()),
            "versions": versions(),
            "fingerprints": {"request": request_of(config)},
            "model": {"path": "model", "hash": hash_of_folder(folder / "model")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": command_of(config),
            "id": search.job["id"],
        }
        (folder / "summary.json").write_text(json.dumps(told, indent=2) + "\n")
        write_report(folder)

    write_run_folder(config.output, lease, fill)
    if study is not None:
        atomic_files.remove(study)
    tracking.log(lambda: model)
    return model.summary


def search_of(config: Config, made: Any) -> tuple[Search, Path | None]:
    """The `Search` that the job describes; and the folder of its trials to remove at the end, None if the job names
    one.
    """
    given = config.search or {}
    if config.options:
        made = FineTuner(made, **{"cacheDir": stores.path_or_url(config.output.parent / ".cache"), **config.options})
    elif not isinstance(made, Estimator):
        raise InputError(
            f"pipeline={config.pipeline} is fitted, and a search fits it with other settings: name a function that returns an "
            "unfitted Pipeline (module:function), or add a section fineTuner to search the options of its fine-tuning"
        )
    options = {name: value for name, value in given.items() if name in FIELDS}
    study = None
    if options.get("runDir") is None:
        study = config.output.parent / ".cache" / f"{own_id(config.output)}-search-{_study_of(config)}"
        options["runDir"] = str(study)
    current = load_model(model_path(given["current"], config.folder)) if given.get("current") else None
    return Search(
        made,
        space=section.params_of(given, made),
        evaluator=section.evaluators(given, made),
        current=current,
        **{"verbosity": 1, **options},
    ), study


def _study_of(config: Config) -> str:
    """Hash of the settings that determine the trials of a search, so that jobs with equal hashes can share stored
    trials.
    """
    given = config.search or {}
    by_number = given.get("pruner") or given.get("sampler") in BY_NUMBER
    later = [
        "maxSeconds",
        "guard",
        "verbosity",
        "current",
        *KEEPING,
        *([] if by_number else ["numTrials", "parallelism"]),
    ]
    search = {name: value for name, value in given.items() if name not in later}
    return request_of(dataclasses.replace(config, search=search))[:16]

"""Logging of the values of a result to MLflow: params, metrics, tags, files and the dataset of a run."""

import hashlib
import importlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparkdiff.errors import requires_extra
from sparkdiff.machine.secrets import hidden
from sparkdiff.report.page import page
from sparkdiff.tracking.plain_values import CurvePoint, metrics, params, plain, text

TOGETHER = {"metrics": 1000, "params": 100, "tags": 100}
"""Largest number of values of each kind that MLflow's server takes in one request."""
TOLD = "sparkdiff.summary"
"""Tag of a run with the digest of the summary whose curves and figures it has, so that they are not logged again."""


def mlflow() -> Any:
    """The package mlflow, imported.

    Raises:
        InputError: MLflow is not installed.
    """
    with requires_extra("mlflow", "MLflow"):
        importlib.import_module("mlflow.spark")
        return importlib.import_module("mlflow")


def log_values(client: Any, run_id: str, **values: Sequence[Any]) -> None:
    """Log metrics, params or tags, by keyword, in requests of at most the size that the server takes."""
    for kind, entities in values.items():
        for i in range(0, len(entities), TOGETHER[kind]):
            client.log_batch(run_id, **{kind: entities[i : i + TOGETHER[kind]]})


def metrics_of(entities: Any, found: Iterable[CurvePoint]) -> list[Any]:
    now = round(time.time() * 1000)
    return [entities.Metric(p.name, p.value, now, p.step) for p in found]


def tags_of(entities: Any, values: Mapping[str, Any]) -> list[Any]:
    return [entities.RunTag(f"sparkdiff.{name}", text(value)) for name, value in values.items() if value is not None]


def digest_of(summary: Any) -> str:
    return hashlib.sha256(json.dumps(plain(summary), sort_keys=True, default=str).encode()).hexdigest()[:32]


def log_params(client: Any, run_id: str, asked: Mapping[str, str]) -> None:
    """Log params. A param that the run already has with another value, for example from MLflow's own logging of `fit`, is
    logged under its name with the prefix `sparkdiff.`.
    """
    entities, known = importlib.import_module("mlflow.entities"), client.get_run(run_id).data.params
    renamed = {k if known.get(k, v) == v else f"sparkdiff.{k}": v for k, v in asked.items()}
    log_values(client, run_id, params=[entities.Param(k, v) for k, v in renamed.items()])


def log_figures(client: Any, run_id: str, summary: Any) -> None:
    """Log a run's settings, the figures of its decision, and its dataset."""
    entities, told = importlib.import_module("mlflow.entities"), plain(summary)
    tags = {name: told[name] for name in ("decision", "reason")}
    tags |= {f"version.{name}": version for name, version in told.get("versions", {}).items()}
    log_params(client, run_id, params(summary))
    measured = metrics_of(entities, (CurvePoint(k, v, 0) for k, v in metrics(summary).items()))
    log_values(client, run_id, metrics=measured, tags=tags_of(entities, tags))
    _log_dataset(client, run_id, told)
    client.set_tag(run_id, TOLD, digest_of(summary))


def log_pages(client: Any, run_id: str, summary: Any, plan: Any = None) -> None:
    """Log files: summary.json, the report and, if known, the plan."""
    told, history = plain(summary), summary.records
    client.log_text(run_id, json.dumps(told, indent=2), "summary.json")
    drawn = None if plan is None else json.loads(plan.toJSON())
    client.log_text(
        run_id, page(told, history, plan=drawn, trials=hidden(history if "fresh" in told else [])), "report.html"
    )
    if plan is not None:
        client.log_text(run_id, str(plan), "plan.txt")
        client.log_text(run_id, plan.draw()._repr_svg_(), "plan.svg")


def _log_dataset(client: Any, run_id: str, told: Mapping[str, Any]) -> None:
    """Log the rows as a dataset of the run, identified by the fingerprint of their cache."""
    known = told.get("cache") or {}
    if not known.get("fingerprint"):
        return
    entities = importlib.import_module("mlflow.entities")
    source = json.dumps({"fingerprint": known["fingerprint"], "versions": known.get("versions", [])})
    rows = entities.Dataset("rows", known["fingerprint"][:36], "sparkdiff", source)
    client.log_inputs(run_id, [entities.DatasetInput(rows)])
    client.set_tag(run_id, "sparkdiff.fingerprint", known["fingerprint"])

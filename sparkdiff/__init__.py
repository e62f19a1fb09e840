"""Fine-tuning of fitted Spark ML pipelines; the result is again a plain Spark ML pipeline."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkdiff.errors import InputError, ParityError, SparkdiffError
    from sparkdiff.estimators.fine_tuner import FineTuner, FineTunerModel
    from sparkdiff.estimators.grower import Grower, GrowerModel
    from sparkdiff.estimators.improver import Improver, ImproverModel
    from sparkdiff.estimators.search import Search, SearchModel
    from sparkdiff.fine_tuning.costs import Cost
    from sparkdiff.fleet.triage_run import Triage, triage
    from sparkdiff.growth.growth_summary import GrowthSummary
    from sparkdiff.history.lineage import Lineage
    from sparkdiff.history.run_store import runs, why
    from sparkdiff.importers import from_lightgbm, from_sklearn, from_xgboost
    from sparkdiff.improvement.improvement_summary import ImprovementSummary
    from sparkdiff.labeling.distillation import distill
    from sparkdiff.labeling.label_model import LabelModel, LabelModelModel
    from sparkdiff.labeling.label_summary import LabelSummary
    from sparkdiff.pipeline.nesting import plain
    from sparkdiff.pipeline.network import Network, translate
    from sparkdiff.pipeline.parity import Parity, verify
    from sparkdiff.pipeline.plan import Plan, plan
    from sparkdiff.pipeline.write_back import write_back
    from sparkdiff.report.progress import Events
    from sparkdiff.report.run_record import FineTuningSummary, RunRecord
    from sparkdiff.search.alternatives import alternatives
    from sparkdiff.search.distributions import choice, integer, loguniform, uniform
    from sparkdiff.search.search_summary import SearchSummary
    from sparkdiff.serving.compact.compact import CompactPlan, compact, compact_plan
    from sparkdiff.serving.onnx.export import ExportedModel, export
    from sparkdiff.serving.scorer.scorer import Scorer
    from sparkdiff.serving.torch_transformer import TorchTransformer
    from sparkdiff.stages.base import StageModule, register
    from sparkdiff.tracking import JSONLines, TensorBoard
    from sparkdiff.tuning.cross_validation import CrossValidator, TrainValidationSplit

_HOME = {
    name: home
    for home, names in {
        "fine_tuning.costs": ["Cost"],
        "errors": ["InputError", "ParityError", "SparkdiffError"],
        "estimators.fine_tuner": ["FineTuner", "FineTunerModel"],
        "fleet.triage_run": ["Triage", "Triaged", "triage"],
        "estimators.grower": ["Grower", "GrowerModel"],
        "growth.growth_summary": ["GrowthSummary"],
        "history.lineage": ["Lineage"],
        "labeling.distillation": ["distill"],
        "labeling.label_model": ["LabelModel", "LabelModelModel"],
        "labeling.label_summary": ["LabelSummary"],
        "history.run_store": ["runs", "why"],
        "improvement.improvement_summary": ["ImprovementSummary"],
        "estimators.improver": ["Improver", "ImproverModel"],
        "importers": ["from_lightgbm", "from_sklearn", "from_xgboost"],
        "pipeline.nesting": ["plain"],
        "pipeline.network": ["Network", "translate"],
        "pipeline.parity": ["Parity", "verify"],
        "pipeline.plan": ["Plan", "PlanEdge", "StagePlan", "plan"],
        "pipeline.write_back": ["write_back"],
        "report.progress": ["Events"],
        "report.run_record": ["FineTuningSummary", "RunRecord"],
        "serving.compact.compact": ["CompactPlan", "StageCompaction", "compact", "compact_plan"],
        "serving.onnx.export": ["ExportedColumn", "ExportedModel", "export"],
        "serving.scorer.scorer": ["Scorer"],
        "serving.torch_transformer": ["DeviceChoice", "TorchTransformer"],
        "stages.base": ["StageModule", "register"],
        "tracking": ["JSONLines", "TensorBoard"],
        "tuning.cross_validation": ["CrossValidator", "TrainValidationSplit"],
        "search.alternatives": ["Alternatives", "alternatives"],
        "estimators.search": ["Search", "SearchModel"],
        "search.distributions": ["Choice", "Integer", "Uniform", "choice", "integer", "loguniform", "uniform"],
        "search.search_summary": ["SearchSummary"],
        "search.search_progress": ["SearchProgress"],
    }.items()
    for name in names
}

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 - by what a reader meets first
    "plan",
    "translate",
    "write_back",
    "verify",
    "FineTuner",
    "FineTunerModel",
    "FineTuningSummary",
    "Events",
    "RunRecord",
    "JSONLines",
    "TensorBoard",
    "Cost",
    "Grower",
    "GrowerModel",
    "GrowthSummary",
    "Improver",
    "ImproverModel",
    "ImprovementSummary",
    "CrossValidator",
    "TrainValidationSplit",
    "Search",
    "SearchModel",
    "SearchSummary",
    "alternatives",
    "choice",
    "integer",
    "loguniform",
    "uniform",
    "plain",
    "compact",
    "compact_plan",
    "CompactPlan",
    "export",
    "ExportedModel",
    "TorchTransformer",
    "from_sklearn",
    "from_lightgbm",
    "from_xgboost",
    "Scorer",
    "runs",
    "why",
    "Lineage",
    "triage",
    "Triage",
    "LabelModel",
    "LabelModelModel",
    "LabelSummary",
    "distill",
    "Plan",
    "Network",
    "Parity",
    "StageModule",
    "register",
    "SparkdiffError",
    "InputError",
    "ParityError",
]


def __getattr__(name: str) -> Any:
    # Lazily (PEP 562), so that importing sparkdiff is cheap and needs neither torch nor Spark. No module may have a
    # public name: importing it would replace the name by the module.
    if name == "mlflow":  # a module: `sparkdiff.mlflow.log(tuned)` without another import
        return importlib.import_module("sparkdiff.mlflow")
    if name not in _HOME:
        raise AttributeError(f"module 'sparkdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sparkdiff.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

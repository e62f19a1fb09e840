"""Names that saved and pickled things hold: those of an earlier version are found, and what is saved now names `sparkdiff`."""

import hashlib
import importlib
import pickle
import subprocess
import sys
from typing import Any

import pytest

import sparkdiff
from sparkdiff import InputError, jvm, options
from sparkdiff.pipeline.graph import Graph, Vertex
from sparkdiff.pipeline.translation import with_modules
from sparkdiff.stages.base import REGISTRY, class_name
from sparkdiff.store.identity import identity

OLD = [
    *("tuner.FineTuner", "tuner.FineTunerModel", "summary.FineTuningSummary", "planning.Plan", "planning.StagePlan"),
    *("parity.Parity", "jvm.formulas.FormulaLabel", "errors.InputError", "errors.ParityError", "errors.SparkdiffError"),
]
KNOWN = {
    "jvm.encoders": ["Statistics"],
    "nodes": ["Nodes"],
    "rows": ["SparseRows", "dense"],
    "stages.assembling": ["VectorAssembler"],
    "stages.base": ["StageModule"],
    "stages.bayes": ["Gaussian"],
    "stages.binning": ["Binarizer", "Bucketizer"],
    "stages.clustering": ["GaussianMixture", "KMeans"],
    "stages.embedding": ["Word2Vec"],
    "stages.encoding": ["OneHotEncoder"],
    "stages.expanding": ["PolynomialExpansion"],
    "stages.factorization_machine": ["FMClassification", "FMRegression"],
    "stages.formula": ["ColumnPruner", "VectorAttributeRewriter"],
    "stages.imputing": ["Imputer"],
    "stages.indexing": ["VectorIndexer"],
    "stages.interaction": ["Interaction"],
    "stages.isotonic": ["IsotonicRegression"],
    "stages.linear": ["GeneralizedLinearRegression", "LinearRegression", "LogisticRegression"],
    "stages.one_vs_rest": ["OneVsRest"],
    "stages.perceptron": ["MultilayerPerceptron"],
    "stages.predictor": ["Predictor"],
    "stages.projection": ["DCT", "PCA"],
    "stages.recommendation": ["ALS"],
    "stages.routing": ["Router", "Splits", "Subsets"],
    "stages.scaling": ["MaxAbsScaler", "MinMaxScaler", "RobustScaler", "StandardScaler"],
    "stages.selecting": [
        "ChiSqSelector",
        "UnivariateFeatureSelector",
        "VarianceThresholdSelector",
        "VectorSizeHint",
        "VectorSlicer",
    ],
    "stages.support_vector": ["LinearSVC"],
    "stages.survival": ["AFTSurvivalRegression"],
    "stages.targets": ["Table", "TargetEncoder"],
    "stages.text": ["IDF"],
    "stages.trees": [
        "DecisionTreeClassification",
        "DecisionTreeRegression",
        "GBTClassification",
        "GBTRegression",
        "RandomForestClassification",
        "RandomForestRegression",
    ],
    "stages.weighing": ["ElementwiseProduct", "Normalizer"],
}
"""What the modules of a training hold, by the names under which runs that may still go on know it."""
MOVED = {
    "nodes": "jvm.nodes",
    "rows": "tensors.rows",
    "stages.formula.ColumnPruner": "PrunedColumns",
    "stages.formula.VectorAttributeRewriter": "RewrittenAttributes",
    "stages.targets.Table": "CategoryTable",
}
AS_SPARK_DOES = """
import sys
module = __import__("sparkdiff.tuner", fromlist=["FineTuner"])  # the first thing in a process that loads a saved FineTuner
FineTuner = module.FineTuner
import sparkdiff.tuner
from sparkdiff.tuner import FineTunerModel
assert (sparkdiff.FineTuner, sparkdiff.FineTunerModel) == (FineTuner, FineTunerModel)
assert __import__("sparkdiff", fromlist=["FineTuner"]).FineTuner is FineTuner
"""


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_the_class(name: str) -> None:
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(f"sparkdiff.{module}"), kind)
    assert found is getattr(sparkdiff, kind)
    if module not in ("errors", "jvm.formulas"):
        assert f"{found.__module__}.{found.__qualname__}" == f"sparkdiff.{kind}"
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_new_process_finds_them_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AS_SPARK_DOES], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("old", KNOWN)
def test_a_class_that_moves_is_known_to_runs(old: str) -> None:
    """Where one has moved, `KNOWN_AS` of identity says under which name runs know it, as long as the version stays."""
    module = importlib.import_module(f"sparkdiff.{MOVED.get(old, old)}")
    for name in KNOWN[old]:
        text = f"sparkdiff.{old} {sparkdiff.__version__} :{name}"
        assert (
            identity(getattr(module, MOVED.get(f"{old}.{name}", name)))
            == hashlib.sha256(f"library {len(text)}:{text}".encode()).hexdigest()
        )


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute '_listed'"):
        vars(sparkdiff)["__getattr__"]("_listed")
    assert importlib.import_module("sparkdiff.options") is options  # what is still a module isn't an alias


def test_a_stage_of_ones_own_is_told_of_names_that_nobody_asks_for_any_more() -> None:
    class Scaler(sparkdiff.StageModule):
        def counts(self) -> dict[str, object]:
            return {}

    with pytest.warns(FutureWarning, match=r"Scaler\.counts is not used: this member .* is now called entry_mask"):
        sparkdiff.register("elsewhere.Scaler")(Scaler)
    del REGISTRY["elsewhere.Scaler"]


class Scaled:
    """A stage in Python, as far as its translation looks at it."""

    uid = "scaled1"


def test_it_is_told_once_of_those_that_it_sets_on_itself_too(recwarn: pytest.WarningsRecorder) -> None:
    class Scaler(sparkdiff.StageModule):
        def __init__(self) -> None:
            super().__init__()
            self.tells_null = True

        @classmethod
        def from_spark(cls, stage: object) -> "Scaler":
            return cls()

    sparkdiff.register(class_name(Scaled()))(Scaler)
    vertex = Vertex(0, (0,), "scaled1", "Scaled", Scaled(), ("x",), ("y",), reads=(("x", -1),))
    for _ in range(2):
        assert with_modules(Graph(str.lower, (vertex,), head_position=0), None).vertices[0].module is not None
    del REGISTRY[class_name(Scaled())]
    [warning] = recwarn
    assert str(warning.message).startswith(
        "Scaler.tells_null is not used: this member of StageModule is now called takes"
    )


@pytest.mark.parametrize("module", [5, Scaled, Scaled()])
def test_only_a_stage_module_is_registered(module: Any) -> None:
    with pytest.raises(InputError, match=r"register\('shop.Scaled'\) takes a subclass of sparkdiff.StageModule, got "):
        sparkdiff.register("shop.Scaled")(module)
    assert "shop.Scaled" not in REGISTRY


def test_a_translation_is_registered_by_name() -> None:
    with pytest.raises(
        InputError, match=r"class name of register.. must be a full Python name .* got the class Scaled itself"
    ):
        sparkdiff.register(Scaled)  # type: ignore[arg-type]


def test_weights_of_a_stage_in_python_are_params() -> None:
    with pytest.raises(
        InputError, match=r"scaled1: Scaled is written in Python, .* \(steepness\): .* in weight_params"
    ):
        jvm.rebuild(Scaled(), {"steepness": 1.0})

"""A stage whose output also goes elsewhere than to the loss stays, or trains on request and the plan lists what changes."""

from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import (
    Binarizer,
    BucketedRandomProjectionLSH,
    Imputer,
    IndexToString,
    Normalizer,
    SQLTransformer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.sql import DataFrame

import sparkdiff
from sparkdiff import InputError, plan
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Analysis, analyse
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.plan import plan_of
from sparkdiff.pipeline.write_back import write_back
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.referenced_stages import INPUTS
from tests.support.readable_uids import named

Fitted = dict[str, Any]
WHY = "also feeds lsh, outside the loss: hashes would change; trains on request (target, unfreeze): "


@pytest.fixture(scope="module")
def known(fitted: Fitted, df: DataFrame) -> Fitted:
    lsh = named("lsh", BucketedRandomProjectionLSH, inputCol="vector", outputCol="hashes", bucketLength=1e-3, seed=1)
    return {**fitted, "lsh": lsh.fit(fitted["assembler"].transform(df))}


def copy(stage: Any, **params: Any) -> Any:
    return stage.copy({stage.getParam(p): v for p, v in params.items()})


def trained(found: sparkdiff.Plan) -> list[str]:
    return [s.uid for s in found.stages if s.trainable]


def reason(found: sparkdiff.Plan, uid: str) -> str:
    return next(s.reason for s in found.stages if s.uid == uid)


@pytest.fixture
def shared(known: Fitted) -> PipelineModel:
    """scaler → PCA → hashes, and beside them → LinearRegression, which is rounded."""
    rounded = named("rounded", Binarizer, inputCol="prediction", outputCol="many", threshold=1.0)
    return PipelineModel(
        [
            known["assembler"],
            known["scaler"],
            copy(known["pca"], inputCol="scaled"),
            copy(known["lsh"], inputCol="components"),
            copy(known["linear"], featuresCol="components"),
            rounded,
        ]
    )


def test_what_also_feeds_a_stage_outside_of_the_loss_stays(shared: PipelineModel) -> None:
    found = plan(shared)
    assert trained(found) == ["linear"]
    assert reason(found, "pca") == WHY + "pc"
    assert reason(found, "scaler") == WHY + "std, mean"
    assert found.cacheCols == ("vector",)  # the cut doesn't depend on what trains


def test_what_is_frozen_or_has_its_own_output_only_is_no_matter(known: Fitted, shared: PipelineModel) -> None:
    """`components` itself changes by design: a stage has to read it."""
    stages = [s for s in shared.stages if s.uid != "lsh"]
    assert trained(plan(PipelineModel(stages))) == ["scaler", "pca", "linear"]
    other = PipelineModel([*stages, copy(known["lsh"], inputCol="vector")])
    assert trained(plan(other)) == ["scaler", "pca", "linear"]


@pytest.mark.parametrize(
    ("wishes", "trains"),
    [
        ({"target": ["pca", "linear"]}, {"pca": 6, "linear": 4}),
        ({"target": ["scaler", "PCAModel", "linear"]}, {"scaler": 6, "pca": 6, "linear": 4}),
        ({"unfreeze": ["PCAModel.pc"]}, {"pca": 6, "linear": 4}),
        ({"unfreeze": ["scaled.mean"]}, {"scaler": 3, "linear": 4}),
        ({"unfreeze": ["scaler.mean"], "target": "scaler"}, {"scaler": 6}),
    ],
)
def test_on_request_it_trains_and_the_plan_lists_what_changes(
    shared: PipelineModel, wishes: dict[str, Any], trains: dict[str, int]
) -> None:
    found = plan(shared, **wishes)
    assert {s.uid: s.numParameters for s in found.stages if s.trainable} == trains
    for uid in set(trains) - {"linear"}:
        assert reason(found, uid).endswith("; also changes hashes, outside the loss")
    if "linear" in trains:
        assert reason(found, "linear") == "the loss"


def test_unfreeze_lets_only_what_it_names_train(shared: PipelineModel) -> None:
    module = analyse(shared, Options(unfreeze=("scaler.mean",))).graph.modules[1]
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["mean"]


def test_what_trains_anyway_needs_no_request(shared: PipelineModel) -> None:
    for name in ("linear.coefficients", "scaler.withMean", "pca"):
        with pytest.raises(InputError, match=rf"unfreeze='{name}' must name a parameter that trains on request only"):
            plan(shared, unfreeze=[name])


def test_the_version_of_a_column_decides(known: Fitted, df: DataFrame) -> None:
    """Of two columns called `a` only the second, which an Imputer writes, depends on what trains."""
    imputer = named("imputer", Imputer, inputCols=["a"], outputCols=["a"]).fit(df)
    side = named("side", VectorAssembler, inputCols=["a", "b"], outputCol="pair")
    main = [known["assembler"], copy(known["linear"], featuresCol="vector")]
    assert trained(plan(PipelineModel([side, imputer, *main]))) == ["imputer", "linear"]
    found = plan(PipelineModel([imputer, side, *main]))
    assert trained(found) == ["linear"]
    assert reason(found, "imputer").startswith("also feeds side, outside the loss: pair would change")


def test_sql_behind_the_loss_hides_no_reader(shared: PipelineModel, known: Fitted) -> None:
    """A statement may pass a column on: who reads it then reads what its last declared writer made."""
    sql = named("sql", SQLTransformer, statement="SELECT *, prediction + 1 AS more FROM __THIS__")
    main = [s for s in shared.stages if s.uid != "lsh"]
    words = named("words", IndexToString, inputCol="more", outputCol="word", labels=["few"])
    assert trained(plan(PipelineModel([*main, sql, words]))) == ["scaler", "pca", "linear"]
    found = plan(PipelineModel([*main, sql, copy(known["lsh"], inputCol="components")]))
    assert trained(found) == ["linear"]
    assert reason(found, "pca") == WHY + "pc"


def test_with_another_predictor_on_request(known: Fitted) -> None:
    model = PipelineModel(
        [
            known["assembler"],
            known["scaler"],
            copy(known["glr"], featuresCol="scaled", predictionCol="other"),
            copy(known["linear"], featuresCol="scaled"),
        ]
    )
    found = plan_of(analyse(model, Options(predictionCol="other")), {})
    assert trained(found) == ["glr"]
    assert reason(found, "scaler").startswith("also feeds the predictor linear, outside the loss: prediction ")
    roles = analyse(model, Options(predictionCol="other", target=["scaler"])).roles
    assert roles.outside.columns(roles.trainable) == ["prediction"]


def test_a_predictor_behind_the_one_that_trains_is_named(known: Fitted) -> None:
    """It was fitted to what the other one said before."""
    stages = [
        known["assembler"],
        copy(known["logistic"], predictionCol="below"),
        named("joined", VectorAssembler, inputCols=["vector", "probability"], outputCol="all"),
        copy(known["linear"], featuresCol="all"),
    ]
    found = plan_of(analyse(PipelineModel(stages), Options(predictionCol="below")), {})
    assert trained(found) == ["logistic"]
    assert reason(found, "logistic").startswith("the loss; also changes prediction, outside the loss")


# Against Spark ----------------------------------------------------------------------------------------------------------


class Drawn:
    """A pipeline drawn at random: vectors of three entries go through scalers and into predictors and stages beside them."""

    def __init__(self, known: Fitted, seed: int):
        self.random, self.known = np.random.default_rng(seed), known
        self.stages: list[Any] = [known["assembler"]]
        self.reads: dict[str, set[str]] = {"vector": set()}  # each column, and all that it is made of
        self.vectors = ["vector"]
        for _ in range(self.random.integers(3, 6)):
            self.vectors.append(self.step())
        self.side("lsh")
        self.add(copy(known["linear"], featuresCol=self.vector()), "prediction")
        self.side(self.random.choice(["lsh", "normalizer"]))
        if self.random.random() < 0.5:
            self.add(copy(known["glr"], featuresCol=self.vector(), predictionCol="other"), "other")
        self.add(Binarizer(inputCol="prediction", outputCol="many"), "many")
        self.model = PipelineModel(self.stages)

    def vector(self) -> str:
        return str(self.random.choice(self.vectors))

    def add(self, stage: Any, *outputs: str) -> None:
        flat = [c for c in columns_of(stage, INPUTS) if c in self.reads]
        for c in outputs:
            self.reads[c] = set(flat).union(*(self.reads[f] for f in flat))
        self.stages.append(stage)

    def step(self) -> str:
        to, kind = f"v{len(self.stages)}", self.random.choice(["scaler", "minmax", "join"])
        if kind == "join":
            self.add(VectorAssembler(inputCols=[self.vector(), self.vector()], outputCol=to + "x2"), to + "x2")
            self.add(VectorSlicer(inputCol=to + "x2", outputCol=to, indices=[0, 4, 2]), to)
        else:
            self.add(copy(self.known[kind], inputCol=self.vector(), outputCol=to), to)
        return to

    def side(self, kind: str) -> None:
        to = f"side{len(self.stages)}"
        if kind == "lsh":
            self.add(copy(self.known["lsh"], inputCol=self.vector(), outputCol=to), to)
        else:
            self.add(Normalizer(inputCol=self.vector(), outputCol=to), to)

    def moved(self, found: Analysis) -> Any:
        """The pipeline with every parameter that trains another."""
        network = Network(found.graph, list(found.graph.modules))
        with torch.no_grad():
            for p in network.parameters():
                if p.requires_grad:
                    p.copy_(1.3 * p + 0.1)
        return write_back(self.model, network)


@pytest.mark.parametrize("seed", range(6))
def test_no_column_changes_that_the_plan_does_not_name(known: Fitted, df: DataFrame, seed: int) -> None:
    drawn, rows = Drawn(known, seed), df.limit(5).cache()
    before = drawn.model.transform(rows).toPandas()

    def changed(found: Analysis) -> set[str]:
        after = drawn.moved(found).transform(rows).toPandas()
        return {c for c in before if before[c].tolist() != after[c].tolist()}

    inside = {"prediction", *drawn.reads["prediction"]}
    behind = {c for c, made_of in drawn.reads.items() if "prediction" in made_of}
    found = analyse(drawn.model, Options(predictionCol="prediction"))
    assert changed(found) <= inside | behind

    stages = plan_of(found, {}).stages
    shared = [s.outputCols[0] for s in stages if "trains on request (target" in s.reason]
    every = [s.outputCols[0] for s in stages if s.trainable] + shared
    asked = analyse(drawn.model, Options(predictionCol="prediction", target=every))
    named_ones = set(asked.roles.outside.columns(asked.roles.trainable))
    assert bool(named_ones) == bool(shared)
    assert changed(asked) - inside - behind == named_ones


def test_what_trains_on_request_is_named_if_outside_bars_it(known: Fitted, df: DataFrame) -> None:
    first = known["assembler"].getInputCols()[0]
    shared = PipelineModel(
        [
            named("cut", Binarizer, inputCol=first, outputCol="above", threshold=0.5),
            named("side", Binarizer, inputCol="above", outputCol="aside", threshold=0.1),
            named("two", VectorAssembler, inputCols=["above"], outputCol="x"),
            copy(known["linear"], featuresCol="x"),
        ]
    )
    assert reason(plan(shared), "cut") == "nothing to train; trains on request (unfreeze): threshold"
    assert trained(plan(shared, unfreeze=["cut.threshold"])) == ["cut", "linear"]

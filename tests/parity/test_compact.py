"""What `compact` makes of fitted pipelines, against Spark's own outputs of the original, on rows with NaN and zeros."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    RandomForestClassifier,
)
from pyspark.ml.feature import (
    DCT,
    IDF,
    PCA,
    ElementwiseProduct,
    Imputer,
    IndexToString,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    RFormula,
    RobustScaler,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
    VectorSizeHint,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import (
    AFTSurvivalRegression,
    DecisionTreeRegressor,
    GBTRegressor,
    GeneralizedLinearRegression,
    LinearRegression,
)
from pyspark.ml.tuning import CrossValidatorModel
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import InputError, SparkdiffError, compact, compact_plan
from sparkdiff.cli.app import main
from sparkdiff.evaluation import model_saving
from sparkdiff.jvm import SparkError, sessions, trees
from sparkdiff.jvm.coefficients import with_coefficients
from sparkdiff.jvm.selections import can_except
from sparkdiff.machine import atomic_files
from sparkdiff.pipeline.nesting import flatten
from tests.support.compacting import TOLERANCE, worst
from tests.support.readable_uids import named

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def odd(spark: SparkSession, df: DataFrame) -> DataFrame:
    """Rows as of `df`, some with NaN, zeros, huge and tiny numbers; and vectors `dense` of three entries, sparse in most rows."""
    random, rows = np.random.default_rng(7), []
    for i in range(48):
        a, b, c = random.normal(size=3)
        if i < 24:
            a, b = [a, np.nan, 0.0, -0.0, 1e6, 1e-300][i % 6], [b, b, 0.0, np.nan][i % 4]
        stored = [j for j in range(3) if random.random() < 0.6]
        values = [float("nan") if random.random() < 0.1 else float(v) for v in random.normal(size=len(stored))]
        vector = Vectors.dense(random.normal(size=3)) if i % 4 == 0 else Vectors.sparse(3, stored, values)
        rows.append(("abcz"[i % 4], float(i % 3), float(a), float(b), float(c), 1.0 + i % 2, vector))
    names = ["kind", "index", "a", "b", "c", "weight", "dense"]
    return spark.createDataFrame(rows, names).coalesce(1).cache()


def numbers(mode: str = "keep") -> list[Any]:
    return [named("numbers", VectorAssembler, inputCols=["a", "b"], outputCol="v", handleInvalid=mode)]


def categories() -> list[Any]:
    return [
        named("index", StringIndexer, inputCol="kind", outputCol="kindIndex", handleInvalid="keep"),
        named("hot", OneHotEncoder, inputCols=["kindIndex", "index"], outputCols=["kindHot", "indexHot"]),
    ]


def standard(source: str = "v", out: str = "z", mean: bool = True) -> StandardScaler:
    return named("standard", StandardScaler, inputCol=source, outputCol=out, withMean=mean)


def joined(*columns: str, mode: str = "keep") -> VectorAssembler:
    return named("joined", VectorAssembler, inputCols=list(columns), outputCol="all", handleInvalid=mode)


def head(kind: Any, features: str, label: str = "label", **params: Any) -> Any:
    return named("head", kind, featuresCol=features, labelCol=label, **params)


CASES: dict[str, tuple[Callable[[], list[Any]], str]] = {
    # what is fitted, and the uids of the stages that are left
    "scaler and PCA, GLR": (
        lambda: [
            *numbers(),
            standard(),
            PCA(inputCol="z", outputCol="p", k=2),
            head(
                GeneralizedLinearRegression, "p", "count", family="poisson", offsetCol="weight", linkPredictionCol="eta"
            ),
        ],
        "numbers head",
    ),
    "scaled block between categories, binomial": (
        lambda: [
            *numbers(),
            standard(),
            *categories(),
            joined("kindHot", "z", "indexHot"),
            head(LogisticRegression, "all", maxIter=5, threshold=0.4),
        ],
        "index hot joined head",
    ),
    "PCA of a block, softmax": (
        lambda: [
            *numbers(),
            standard(),
            PCA(inputCol="z", outputCol="p", k=1),
            *categories(),
            joined("kindHot", "p", "indexHot"),
            head(LogisticRegression, "all", "grade", maxIter=5, thresholds=[0.3, 0.3, 0.4]),
        ],
        "index hot joined head",
    ),
    "lasso, sparse coefficients": (
        lambda: [
            *numbers(),
            *categories(),
            joined("v", "kindHot", "c"),
            named("robust", RobustScaler, inputCol="all", outputCol="r", withCentering=True),
            head(LinearRegression, "r", "count", regParam=0.3, elasticNetParam=1.0),
        ],
        "index hot joined head",
    ),
    "entries left out, softmax": (
        lambda: [
            *numbers(),
            standard(),
            *categories(),
            joined("kindHot", "z", "indexHot"),
            VectorSlicer(inputCol="all", outputCol="some", indices=[4, 0, 2]),
            head(LogisticRegression, "some", "grade", maxIter=5),
        ],
        "index hot joined head",
    ),
    "entries left out, SVC": (
        lambda: [
            *numbers(),
            standard(mean=False),
            VectorSlicer(inputCol="z", outputCol="s", indices=[1]),
            head(LinearSVC, "s", maxIter=3),
        ],
        "numbers head",
    ),
    "network": (
        lambda: [
            *numbers(),
            standard(),
            MinMaxScaler(inputCol="z", outputCol="m", min=-1.0),
            DCT(inputCol="m", outputCol="d"),
            PCA(inputCol="d", outputCol="p", k=1),
            head(MultilayerPerceptronClassifier, "p", layers=[1, 3, 2], maxIter=3),
        ],
        "numbers head",
    ),
    "sparse vectors, survival": (
        lambda: [
            IDF(inputCol="dense", outputCol="i"),
            ElementwiseProduct(inputCol="i", outputCol="e", scalingVec=Vectors.dense(2.0, 0.0, -1.0)),
            MaxAbsScaler(inputCol="e", outputCol="x"),
            head(AFTSurvivalRegression, "x", "weight", censorCol="label", quantilesCol="q", maxIter=3),
        ],
        "head",
    ),
    "boosted trees": (
        lambda: [
            *numbers(),
            standard(),
            *categories(),
            joined("kindHot", "z", "indexHot"),
            VectorSlicer(inputCol="all", outputCol="some", indices=[4, 0, 3]),
            head(GBTRegressor, "some", "count", maxIter=3, leafCol="leaf"),
        ],
        "index hot joined head",
    ),
    "forest behind scalers": (
        lambda: [
            *numbers(),
            standard(mean=False),
            MinMaxScaler(inputCol="z", outputCol="m", min=-3.0),
            MaxAbsScaler(inputCol="m", outputCol="x"),
            head(RandomForestClassifier, "x", numTrees=3, maxDepth=4),
        ],
        "numbers head",
    ),
    "two readers": (
        lambda: [
            *numbers(),
            standard(),
            head(LinearRegression, "z", "count", predictionCol="one"),
            named("tree", DecisionTreeRegressor, featuresCol="z", labelCol="count", predictionCol="two", maxDepth=3),
        ],
        "numbers head tree",
    ),
    "PCA that stays": (
        lambda: [
            *numbers(),
            standard(mean=False),
            named("pca", PCA, inputCol="z", outputCol="p", k=2),
            named("norm", Normalizer, inputCol="p", outputCol="n"),
        ],
        "numbers pca norm",
    ),
}
LONG = ("lasso, sparse coefficients", "entries left out, SVC", "PCA that stays")
"""Those whose pieces other cases have."""
SAVED = ["entries left out, softmax", "boosted trees", "network", "two readers"]
"""Those with sparse coefficients, and with other widths of trees and networks than they were fitted with."""


@pytest.fixture(scope="session")
def train(df: DataFrame) -> DataFrame:
    """The rows of `df`, and three of their numbers as a vector."""
    return VectorAssembler(inputCols=["a", "b", "c"], outputCol="dense").transform(df).cache()


@pytest.fixture(scope="session")
def made(train: DataFrame) -> Callable[[str], PipelineModel]:
    """A pipeline of CASES, fitted once."""
    known: dict[str, PipelineModel] = {}

    def of(name: str) -> PipelineModel:
        if name not in known:
            known[name] = Pipeline(stages=CASES[name][0]()).fit(train)
        return known[name]

    return of


def uids(model: Any) -> str:
    return " ".join(stage.uid for _, stage in flatten(model))


def params(stage: Any) -> dict[str, Any]:
    """All Params that are set, but the names of the columns that it reads, and an assembler's own column."""
    others = ("inputCol", "inputCols", "featuresCol", *(["outputCol"] if isinstance(stage, VectorAssembler) else []))
    return {p.name: v for p, v in stage._paramMap.items() if p.name not in others}


def check_what_stays(model: Any, new: Any, rows: DataFrame) -> list[str]:
    """Every column of the new pipeline that the original has, too, has the original's values; returns what is gone."""
    old, now = model.transform(rows).columns, new.transform(rows).columns
    assert worst(model, new, rows, [c for c in now if c in old]) <= TOLERANCE
    return [c for c in old if c not in now]


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.nightly) if c in LONG else c for c in CASES])
def test_the_same_outputs_with_fewer_stages(
    made: Callable[[str], PipelineModel], odd: DataFrame, tmp_path: Path, case: str
) -> None:
    model = made(case)
    before = [(s.uid, s.extractParamMap()) for _, s in flatten(model)]
    new, plan = compact(model), compact_plan(model)
    assert uids(new) == CASES[case][1]
    assert (type(new), new.uid) == (PipelineModel, model.uid)
    assert [s.uid for s in plan.stages if s.action != "gone"] == uids(new).split()
    olds = {s.uid: s for _, s in flatten(model)}
    for _, stage in flatten(new):
        assert type(stage) is type(olds[stage.uid])
        now, then = params(stage), params(olds[stage.uid])
        assert {**now, "layers": None} == {**then, "layers": None}
        assert type(stage).__module__.startswith("pyspark.ml.")
    assert worst(model, new, odd, plan.keepCols) <= (0.0 if "tree" in case or "forest" in case else TOLERANCE)
    assert set(check_what_stays(model, new, odd)).isdisjoint(plan.keepCols)
    if case in SAVED:
        new.write().save(str(tmp_path / "model"))
        assert worst(new, PipelineModel.load(str(tmp_path / "model")), odd, plan.keepCols) == 0.0
    assert [(s.uid, s.extractParamMap()) for _, s in flatten(model)] == before


@pytest.mark.parametrize("case", SAVED)
def test_through_saved_files(
    made: Callable[[str], PipelineModel], odd: DataFrame, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Where no constructor can be called."""
    monkeypatch.setattr(sessions, "has_constructors", lambda: False)
    model = made(case)
    new = compact(model)
    assert uids(new) == CASES[case][1]
    assert worst(model, new, odd, compact_plan(model).keepCols) <= TOLERANCE


def test_thresholds_move_to_the_exact_double(spark: SparkSession, train: DataFrame) -> None:
    """Rows at each threshold of the folded trees and at the doubles beside it, through Spark's own scalers."""
    first = Pipeline(
        stages=[standard("dense", "x"), named("tree", DecisionTreeRegressor, featuresCol="x", labelCol="count")]
    )
    scaled, tree = first.fit(train).stages
    for scaler in (
        scaled,
        RobustScaler(inputCol="dense", outputCol="x", withCentering=True).fit(train),
        MinMaxScaler(inputCol="dense", outputCol="x", min=-0.3, max=0.7).fit(train),
        ElementwiseProduct(inputCol="dense", outputCol="x", scalingVec=Vectors.dense(0.1, 1e-3, 3.0)),
    ):
        model = PipelineModel([scaler, tree])
        new = compact(model)
        assert uids(new) == "tree"
        nodes = trees.read(new.stages[0])
        inner = np.flatnonzero(nodes.continuous)
        assert len(inner) > 5
        rows = []
        for feature, value in zip(nodes.featureIndex[inner], nodes.values[nodes.starts[inner]], strict=True):
            for x in (value, np.nextafter(value, np.inf), np.nextafter(value, -np.inf), np.inf, -np.inf, np.nan):
                rows += [(Vectors.dense([x if j == feature else y for j in range(3)]),) for y in (0.0, -1.0, 2.0)]
        found = spark.createDataFrame(rows, ["dense"]).coalesce(1)
        assert worst(model, new, found, ["prediction"]) == 0.0


def test_by_default_what_nobody_reads_stays(made: Callable[[str], PipelineModel], odd: DataFrame) -> None:
    model = made("two readers")
    assert compact_plan(model).keepCols == ("one", "two")
    new = compact(model, keepCols=["two"])
    assert uids(new) == "numbers tree"
    assert worst(model, new, odd, ["two"]) == 0.0
    assert uids(compact(model, ["one", "z"])) == "numbers standard head"
    assert uids(compact(model, "z")) == "numbers standard"
    with pytest.raises(InputError, match=r"keepCols='tow' is no column that a stage writes.*Did you mean 'two'"):
        compact(model, ["tow"])
    with pytest.raises(InputError, match="keepCols is empty"):
        compact(model, [])


def test_a_column_with_other_values_has_another_name(train: DataFrame, odd: DataFrame) -> None:
    """That of an assembler in front of what a stage has taken up; also behind another one, and where a stage drops it."""
    stages = [*numbers(), standard(), named("inner", VectorAssembler, inputCols=["c", "z"], outputCol="in")]
    stages += [joined("in", "weight"), head(DecisionTreeRegressor, "all", "count", maxDepth=3)]
    stages = [s.setHandleInvalid("keep") if isinstance(s, VectorAssembler) else s for s in stages]
    model = Pipeline(stages=stages).fit(train)
    new = compact(model, schema=train.schema)
    assert uids(new) == "joined head"
    assert check_what_stays(model, new, odd) == ["v", "z", "in", "all"]
    [changed] = {*new.transform(odd).columns} - {*model.transform(odd).columns}
    assert new.stages[-1].getFeaturesCol() == changed
    told = {s.uid: s.action for s in compact_plan(model, schema=train.schema).stages}
    assert told == {"numbers": "gone", "standard": "gone", "inner": "gone", "joined": "changed", "head": "changed"}
    again = PipelineModel([*new.stages[:-1], standard(changed, "y").fit(new.transform(train)), *new.stages[-1:]])
    again.stages[-1] = new.stages[-1].copy({new.stages[-1].featuresCol: "y"})
    assert check_what_stays(again, compact(again, schema=train.schema), odd) == ["y"]
    behind = PipelineModel([*numbers(), *model.stages[1:]])
    kept = compact(behind, ["in", "prediction"], schema=train.schema)
    assert check_what_stays(behind, kept, odd) == []
    if can_except():
        dropping = SQLTransformer(statement="SELECT * EXCEPT (`all`, z) FROM __THIS__")
        dropped = PipelineModel([*model.stages, dropping])
        without = compact(dropped, schema=train.schema)
        assert uids(without) == f"joined head {dropping.uid}"
        assert check_what_stays(dropped, without, odd) == ["v", "in"]
        assert {*without.transform(odd).columns} <= {*dropped.transform(odd).columns}


def test_what_a_stage_overwrites_does_not_come_back(train: DataFrame, odd: DataFrame) -> None:
    imputer = named("imputer", Imputer, inputCols=["a"], outputCols=["a"])
    filling = named("filling", Imputer, inputCols=["b"], outputCols=["count"])
    model = Pipeline(stages=[*numbers(), imputer, head(LinearRegression, "v", "count"), filling]).fit(train)
    rows = odd.selectExpr("*", "1.0 AS count")
    for schema in (None, rows.schema):
        new = compact(model, ["prediction"], schema=schema)
        assert uids(new) == ("numbers imputer head filling" if schema else "numbers imputer head")
    assert check_what_stays(model, new, rows) == []
    assert "without it a would have the values that it overwrites" in why(model, "imputer", keepCols=["prediction"])


NUMBERS = ["a", "b", "c", "weight"]
ON_A_VECTOR: list[Callable[[str, str], Any]] = [
    lambda source, out: StandardScaler(inputCol=source, outputCol=out, withMean=True),
    lambda source, out: RobustScaler(inputCol=source, outputCol=out),
    lambda source, out: MinMaxScaler(inputCol=source, outputCol=out, max=2.0),
    lambda source, out: MaxAbsScaler(inputCol=source, outputCol=out),
    lambda source, out: PCA(inputCol=source, outputCol=out, k=1),
    lambda source, out: VectorSlicer(inputCol=source, outputCol=out, indices=[0]),
    lambda source, out: Normalizer(inputCol=source, outputCol=out),
    lambda source, out: IDF(inputCol=source, outputCol=out),
]
HEADS: list[Callable[..., Any]] = [
    lambda **given: DecisionTreeRegressor(maxDepth=3, labelCol="count", **given),
    lambda **given: LinearRegression(maxIter=3, labelCol="count", **given),
    lambda **given: GBTRegressor(maxIter=2, maxDepth=2, labelCol="count", **given),
]


def drawn(random: Random) -> tuple[list[Any], list[str] | None]:
    """Stages at random, and columns to keep."""
    vectors, stages = ["dense"], list[Any]()
    for out in (f"v{n}" for n in range(random.randint(3, 7))):
        if random.random() < 0.4:
            sources = random.sample([*NUMBERS, *vectors], random.randint(1, 3))
            stages += [VectorAssembler(inputCols=sources, outputCol=out, handleInvalid="keep")]
        else:
            stages += [random.choice(ON_A_VECTOR)(random.choice(vectors[-3:]), out)]
        vectors += [out]
    stages += [random.choice(HEADS)(featuresCol=vectors[-1], predictionCol="one")]
    stages += [random.choice(HEADS)(featuresCol=random.choice(vectors[-3:]), predictionCol="two")]
    if can_except() and random.random() < 0.3:
        return [*stages, SQLTransformer(statement=f"SELECT * EXCEPT (dense, {vectors[-1]}) FROM __THIS__")], None
    return stages, random.choice([None, ["one"], ["two", random.choice(vectors[1:])]])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.nightly) for n in range(3, 40))])
def test_random_pipelines(train: DataFrame, odd: DataFrame, seed: int) -> None:
    random, folded = Random(seed), 0
    while folded < 3:
        stages, keep = drawn(random)
        try:
            model = Pipeline(stages=stages).fit(train)
        except SparkError:  # a selection of an entry that is not there, or the like
            continue
        new = compact(model, keep, schema=train.schema)
        folded += new is not model
        gone = check_what_stays(model, new, train)
        assert set(compact_plan(model, keep, schema=train.schema).keepCols).isdisjoint(gone)


def why(model: Any, uid: str, **options: Any) -> str:
    (found,) = (s for s in compact_plan(model, **options).stages if s.uid == uid)
    return found.reason


def test_why_stages_stay(train: DataFrame, fitted: dict[str, Any]) -> None:
    linear, scaler, assembler = fitted["linear"], fitted["scaler"], fitted["assembler"]
    on_scaled = linear.copy({linear.featuresCol: "scaled"})
    sql = named("sql", SQLTransformer, statement="SELECT * FROM __THIS__")
    before_sql = PipelineModel([assembler, scaler, sql, on_scaled])
    assert why(before_sql, "scaler") == "stays: scaled is kept"
    assert why(before_sql, "scaler", keepCols=["prediction"]) == "stays: sql behind it may read any column"
    assert why(PipelineModel([sql, linear]), "sql") == "stays: it may read and write any column"
    norm = named("norm", Normalizer, inputCol="scaled", outputCol="n")
    model = PipelineModel([assembler, scaler, on_scaled, norm])
    assert why(model, "scaler") == "stays: norm (Normalizer) cannot absorb it"
    assert why(model, "scaler", keepCols=["prediction"]).startswith("folded into linear")
    assert why(model, "norm", keepCols=["prediction"]) == "deleted: no stage reads its output"
    assert compact(PipelineModel([assembler, linear])).stages == [assembler, linear]
    dropping = assembler.copy({assembler.handleInvalid: "skip"})
    assert why(PipelineModel([dropping, linear]), "assembler") == "stays: it drops rows"
    unread = PipelineModel([assembler, fitted["indexer"]])
    assert why(unread, "assembler", keepCols=["kindIndex"]) == (
        "stays: no stage reads its output, but it refuses rows with invalid values"
    )
    squeezed = linear.copy({linear.featuresCol: "squeezed"})
    assert "entry 2 was constant" in why(PipelineModel([assembler, fitted["minmax"], squeezed]), "minmax")
    pca = fitted["pca"].copy({fitted["pca"].inputCol: "scaled"})
    assert "no constant" in why(PipelineModel([assembler, scaler, pca]), "scaler")


def test_columns_that_change_in_between(fitted: dict[str, Any]) -> None:
    """The scaler reads another version of `vector` than its reader would."""
    again = named("again", VectorAssembler, inputCols=["weight", "index", "count"], outputCol="vector")
    linear = fitted["linear"].copy({fitted["linear"].featuresCol: "scaled"})
    model = PipelineModel([fitted["assembler"], fitted["scaler"], again, linear])
    assert why(model, "scaler") == "stays: again overwrites 'vector', which it reads"


def test_assemblers(train: DataFrame, odd: DataFrame) -> None:
    inner = named("inner", VectorAssembler, inputCols=["a", "dense"], outputCol="in", handleInvalid="error")
    outer = named("outer", VectorAssembler, inputCols=["c", "in", "weight"], outputCol="out", handleInvalid="error")
    linear = LinearRegression(featuresCol="out", labelCol="count")
    model = Pipeline(stages=[inner, outer, linear]).fit(train)
    new = compact(model)
    assert new.stages[0].getInputCols() == ["c", "a", "dense", "weight"]
    assert worst(model, new, odd.where("not isnan(a)"), ["prediction"]) == 0.0
    assert "'error', and outer" in why(
        PipelineModel([inner, outer.copy({outer.handleInvalid: "keep"}), model.stages[2]]), "inner"
    )
    assert why(PipelineModel([inner, outer]), "inner") == "stays: out is kept, with the names of its entries"
    slicer = named("slicer", VectorSlicer, inputCol="out", outputCol="s", names=["c"])
    assert "slicer selects entries by their names" in why(PipelineModel([inner, outer, slicer]), "inner")
    assert why(PipelineModel([inner, outer, slicer]), "slicer") == "stays: s is kept"


def test_unknown_widths(train: DataFrame, odd: DataFrame) -> None:
    """Columns of the data may be numbers or vectors; trees do not tell how wide their features are."""
    stages = [*numbers(), standard(), joined("c", "dense", "z", mode="error")]
    tree = head(DecisionTreeRegressor, "all", "count", maxDepth=3)
    model = Pipeline(stages=[*stages, tree]).fit(train)
    assert "how many entries c, dense have" in why(model, "standard")
    sized = train.schema
    assert "folded into head" in why(model, "standard", schema=sized)
    new = compact(model, schema=sized)
    assert worst(model, new, odd, ["prediction"]) == 0.0
    with pytest.raises(InputError, match="schema must be a StructType"):
        compact(model, schema="c double")  # type: ignore[arg-type]
    linear = Pipeline(stages=[*stages, head(LinearRegression, "all", "count")]).fit(train)
    assert "how many entries c, dense have" in why(linear, "standard")
    few = [*numbers(), standard(), joined("c", "weight", "z", mode="error"), head(LinearRegression, "all", "count")]
    assert "folded into head" in why(Pipeline(stages=few).fit(train), "standard")  # two columns, two features left


def test_one_block_between_other_columns(train: DataFrame, odd: DataFrame) -> None:
    """A DCT does not tell its width; nor need it be that of the stage that takes it up."""
    stages = [*numbers(), DCT(inputCol="v", outputCol="d"), joined("c", "d", "weight", mode="error")]
    model = Pipeline(stages=[*stages, head(LinearRegression, "all", "count")]).fit(train)
    new = compact(model, schema=train.schema)
    assert uids(new) == "numbers joined head"
    assert worst(model, new, odd, ["prediction"]) <= TOLERANCE
    assert "unknown" in why(model, model.stages[1].uid)


def test_one_stage_that_reads_a_selection_twice(train: DataFrame, odd: DataFrame) -> None:
    """The second block moves by what the first one grows by."""
    one, two = (
        named(uid, VectorAssembler, inputCols=columns, outputCol=uid, handleInvalid="error")
        for uid, columns in (("one", ["c", "s"]), ("two", ["s", "weight"]))
    )
    stages = [*numbers(), VectorSlicer(inputCol="v", outputCol="s", indices=[1]), one, two, joined("one", "two")]
    model = Pipeline(stages=[*stages, head(DecisionTreeRegressor, "all", "count", maxDepth=3)]).fit(train)
    new = compact(model, schema=train.schema)
    assert uids(new) == "numbers one two joined head"
    assert worst(model, new, odd, ["prediction"]) == 0.0


def test_what_metadata_says(train: DataFrame, fitted: dict[str, Any]) -> None:
    """Assemblers need widths of columns, `names` of kept vectors are kept, and nothing checks an optimistic VectorSizeHint."""
    scaler, join = standard("n"), joined("z", "a")
    tree = fitted["linear"].copy({fitted["linear"].featuresCol: "all"})
    normed = named("norm", Normalizer, inputCol="dense", outputCol="n")
    model = PipelineModel([normed, scaler.fit(normed.transform(train)), join, tree])
    assert "of which Spark may not know the width" in why(model, "standard")
    passed = named("sql", SQLTransformer, statement="SELECT * FROM __THIS__")
    alone = [standard("dense").fit(train), joined("z"), with_coefficients(tree, np.ones((1, 3)))]
    model = PipelineModel([passed, *alone])
    assert "of which Spark may not know the width" in why(model, "standard", schema=train.schema)
    inner = named("inner", VectorAssembler, inputCols=["a", "b"], outputCol="in", handleInvalid="keep")
    slicer = named("slicer", VectorSlicer, inputCol="all", outputCol="s", indices=[0])
    behind = PipelineModel([inner, joined("in", "c"), slicer])
    assert why(behind, "inner") == "stays: s is kept, with the names of its entries"
    hint = named("hint", VectorSizeHint, inputCol="dense", size=2, handleInvalid="optimistic")  # it has 3 entries
    six = with_coefficients(tree, np.ones((1, 6)))
    wrong = PipelineModel([hint, inner, standard("in").fit(inner.transform(train)), joined("dense", "c", "z"), six])
    assert why(wrong, "standard", schema=train.schema) == "folded into linear"
    short = PipelineModel([hint.copy({hint.handleInvalid: "error"}), *wrong.stages[1:]])
    found = why(short, "standard", schema=train.schema)
    assert found == "stays: joined writes 6 entries, but its columns seem to have another number"


def test_pipelines_in_pipelines_and_searches(train: DataFrame, odd: DataFrame) -> None:
    before = Pipeline(stages=[*numbers(), standard()]).fit(train)
    best = head(LinearRegression, "z", "count").fit(before.transform(train))
    search = CrossValidatorModel(best, [1.0])
    model = PipelineModel([PipelineModel([before]), search])
    new = compact(model)
    assert [type(s).__name__ for s in new.stages] == ["PipelineModel", "CrossValidatorModel"]
    assert uids(new) == "numbers head"
    assert (new.stages[1].uid, new.stages[1].avgMetrics) == (search.uid, [1.0])
    assert worst(model, new, odd, ["prediction"]) <= TOLERANCE
    formula = RFormula(formula="count ~ a + b", featuresCol="f").fit(train)
    assert "part of" in compact_plan(PipelineModel([formula])).stages[0].reason
    assert compact(PipelineModel([formula])).stages == [formula]


def test_text_behind_predictions(train: DataFrame, odd: DataFrame) -> None:
    """A stage behind the head reads its prediction, which stays."""
    text = named("text", IndexToString, inputCol="prediction", outputCol="text", labels=["no", "yes"])
    model = Pipeline(stages=[*numbers(), standard(), head(LogisticRegression, "z", maxIter=3), text]).fit(train)
    assert compact_plan(model).keepCols == ("rawPrediction", "probability", "text")
    new = compact(model)
    assert uids(new) == "numbers head text"
    assert worst(model, new, odd, ["text", "probability"]) <= TOLERANCE


def test_the_plan_as_text_and_json(made: Callable[[str], PipelineModel]) -> None:
    plan = compact_plan(made("two readers"))
    assert str(plan).splitlines()[-1] == "4 stages become 3; these columns stay: one, two"
    told = json.loads(plan.toJSON())
    assert [s["action"] for s in told["stages"]] == ["same", "gone", "changed", "changed"]
    assert set(told["stages"][0]) == {"path", "uid", "stageClass", "action", "reason"}
    assert len(plan.toPandas()) == 4


def test_the_command(made: Callable[[str], PipelineModel], odd: DataFrame, tmp_path: Path, capsys: Any) -> None:
    model, new = tmp_path / "model", tmp_path / "new" / "small"
    made("two readers").write().save(str(model))
    odd.write.parquet(f"file://{tmp_path}/rows.parquet")
    odd.select(odd.columns[0]).write.parquet(f"file://{tmp_path}/one.parquet")
    assert main(["compact", str(model), "--output", str(new), "--data", f"{tmp_path}/one.parquet"]) == 2
    assert "the saved pipeline cannot be compared: the pipeline in memory fails" in capsys.readouterr().err
    assert not new.exists()
    odd.where("false").write.parquet(f"file://{tmp_path}/none.parquet")
    assert main(["compact", str(model), "--output", str(new), "--data", f"{tmp_path}/none.parquet"]) == 2
    assert "returns none of the first 1,000 rows" in capsys.readouterr().err
    (tmp_path / "rows").write_text("no parquet\n")
    assert main(["compact", str(model), "--output", str(new), "--data", f"{tmp_path}/rows"]) == 2
    assert "rows has no parquet in it; set its format, or correct its name" in capsys.readouterr().err
    to_new = ["--keepCols", "two", "--output", str(new), "--data", f"{tmp_path}/rows.parquet"]
    assert main(["compact", str(model), *to_new]) == 0
    assert f"saved {new} (plain Spark ML)" in capsys.readouterr().out
    assert worst(made("two readers"), PipelineModel.load(str(new)), odd, ["two"]) == 0.0
    assert [p.name for p in new.parent.iterdir()] == ["small"]
    assert main(["compact", str(model), "--output", str(new)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["compact", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keepCols"] == ["one", "two"]


def test_a_pipeline_that_cannot_be_written(
    made: Callable[[str], PipelineModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*paths: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "rename", refused)
        with pytest.raises(SparkdiffError, match=r"cannot be written to .*small: .*Permission denied; choose another"):
            model_saving.save(made("two readers"), tmp_path / "new" / "small", None)
    assert list(tmp_path.iterdir()) == []

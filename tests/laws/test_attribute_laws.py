"""Stages that find columns' slots by their attributes: VectorSlicer by names; what is known before data are seen."""

from typing import Any

import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import Interaction, RFormula, StandardScaler, VectorAssembler, VectorSlicer
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError
from sparkdiff.jvm.rformula import parts
from sparkdiff.pipeline import schema as attributes
from sparkdiff.pipeline.graph import Graph, Vertex
from sparkdiff.stages import formula
from sparkdiff.stages.selecting import VectorSlicer as Sliced
from sparkdiff.tensors.rows import dense
from sparkdiff.testing import LawBroken, check_stage
from tests.support.stages_and_rows import check

SLOTS = {
    "num_attrs": 6,
    "attrs": {
        "numeric": [{"idx": 4, "name": "height"}, {"idx": 0, "name": "a.b"}, {"idx": 3}],
        "nominal": [{"idx": 1, "name": "sky", "vals": ["clear", "rain"]}],
        "binary": [{"idx": 5, "name": "Größe `x`"}],
    },
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """Vectors of six slots, of which four have names; dense, sparse and mixed; numbers a and b."""
    data = []
    for i in range(12):
        values = [
            0.5 * i,
            float(i % 2),
            float("nan") if i == 3 else 2.0 - i,
            0.0,
            -1.0 * i,
            float("inf") if i == 5 else 0.0,
        ]
        stored = [k for k, v in enumerate(values) if v != 0]
        few = Vectors.sparse(6, stored, [values[k] for k in stored])
        data.append((Vectors.dense(values), few, few if i % 2 else Vectors.dense(values), float(i), 1.0 - i))
    df = spark.createDataFrame(data, ["dense", "sparse", "mixed", "a", "b"])
    known = {c: F.col(c).alias(c, metadata={"ml_attr": SLOTS}) for c in ("dense", "sparse", "mixed")}
    return df.withColumns(known).repartition(2).cache()


def sliced(names: list[str], indices: tuple[int, ...] = (), column: str = "dense") -> VectorSlicer:
    return VectorSlicer(inputCol=column, outputCol="out", names=names, indices=list(indices))


def test_by_names(rows: DataFrame) -> None:
    chosen: list[tuple[list[str], tuple[int, ...]]] = [
        (["sky"], ()),
        (["height", "a.b"], ()),
        (["Größe `x`", "sky"], (3, 2)),
        (["a.b"], (5,)),
    ]
    check([sliced(names, indices, c) for names, indices in chosen for c in ("dense", "sparse", "mixed")], rows)


TRAPS: dict[str, Any] = {
    "names before indices": lambda names, places, indices: [*(places[n] for n in names), *indices],
    "in the order of the vector": lambda names, places, indices: [*indices, *sorted(places[n] for n in names)],
    "in the order of the attributes": lambda names, places, indices: [
        *indices,
        *(list(places).index(n) for n in names),
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_planted(rows: DataFrame, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    stage, right = sliced(["height", "a.b"], (2,)), Sliced.from_fields

    def wrong(stage: Any, fields: Any) -> Any:
        module = right(stage, fields)
        places = {a["name"]: a["idx"] for kind in SLOTS["attrs"].values() for a in kind if "name" in a}  # type: ignore[attr-defined]
        module.indices = torch.tensor(TRAPS[trap](stage.getNames(), places, stage.getIndices()))
        return module

    monkeypatch.setattr(Sliced, "from_fields", wrong)
    with pytest.raises(LawBroken):
        check_stage(stage, rows)


def reason(model: Any, **known: Any) -> tuple[str, str]:
    last = sparkdiff.plan(model, **known).stages[-1]
    return last.role, last.reason


def test_what_is_known_without_data(rows: DataFrame) -> None:
    undecided = ("referenced", "which entries of 'dense' have the selected names is decided when data are seen")
    assert reason(sliced(["sky"])) == undecided
    assert reason(sliced(["sky"]), schema=rows.schema) == ("translated", "nothing to train")
    bare = rows.select(F.col("dense").alias("dense", metadata={"note": "bare"})).schema
    assert reason(sliced(["sky"]), schema=bare) == undecided  # a schema says nothing about a bare vector's width
    assert reason(sliced(["snow"]), schema=rows.schema) == (
        "referenced",
        "no entry of 'dense' is named 'snow', so Spark refuses the stage",
    )
    numbers = PipelineModel([VectorAssembler(inputCols=["a", "b"], outputCol="dense"), sliced(["b"])])
    assert reason(numbers) == (
        "translated",
        "nothing to train; whether a, b hold categories is decided when data are seen",
    )
    after = PipelineModel([VectorAssembler(inputCols=["a", "v", "b"], outputCol="dense"), sliced(["b"])])
    schema = rows.select("a", "b", F.col("dense").alias("v", metadata={"note": "bare"})).schema
    assert reason(after, schema=schema) == undecided  # b stands behind a vector of unknown width
    before = PipelineModel([after.stages[0], sliced(["a"])])
    assert reason(before, schema=schema)[0] == "translated"


def test_the_data_tell(rows: DataFrame) -> None:
    """verify looks at the rows where their schema leaves a width open."""
    df = rows.select("a", "b", F.col("dense").alias("v", metadata={"note": "bare"}))
    model = PipelineModel(
        [
            VectorAssembler(inputCols=["a", "v", "b"], outputCol="dense", handleInvalid="error"),
            sliced(["b", "v_3", "a"]),
        ]
    )
    found = sparkdiff.verify(model, df)
    assert found.ok
    assert set(found.maxRelDiff) == {"dense", "out"}


def test_a_guess_that_turns_out_wrong_is_noticed(rows: DataFrame) -> None:
    """Taken for numbers without a schema, `a` is a vector of two."""
    model = PipelineModel([VectorAssembler(inputCols=["a", "b"], outputCol="dense"), sliced(["b"])])
    network = sparkdiff.translate(model)
    with pytest.raises(InputError, match=r"has 3 entries per row, but the selected names were looked up among 2"):
        network({"a": torch.ones(4, 2), "b": torch.ones(4)})
    df = rows.select("b", F.col("dense").alias("a", metadata={"note": "bare"}))
    assert sparkdiff.verify(model, df, network=network).ok


def test_what_spark_cannot_tell_or_refuses(rows: DataFrame) -> None:
    nominal = rows.select(F.col("a").alias("a", metadata={"ml_attr": {"type": "nominal"}}), "b", "dense", "sparse")
    crossed = Interaction(inputCols=["a", "b"], outputCol="out")
    assert reason(crossed, schema=nominal.schema) == (
        "referenced",
        "column 'a' is nominal without a number of values, and Spark refuses it: set the number in the metadata",
    )
    vectors = Interaction(inputCols=["dense", "b"], outputCol="out")
    role, why = reason(vectors, schema=nominal.schema)
    assert role == "referenced"
    assert why.startswith(
        "vector 'dense' holds categories, which Spark encodes differently in dense and in sparse rows"
    )
    # ... as it does: the rows say the same, their storage differs
    two = [Interaction(inputCols=[c, "b"], outputCol=f"of {c}") for c in ("dense", "sparse")]
    out = PipelineModel(two).transform(nominal.where("a = 0")).first()
    assert out["of dense"].toArray().tolist() != out["of sparse"].toArray().tolist()
    lost = StandardScaler(inputCol="dense", outputCol="scaled").fit(rows.where("a < 3"))
    model = PipelineModel([lost, Interaction(inputCols=["scaled", "b"], outputCol="out")])
    with pytest.raises(InputError, match="Vector attributes must be defined"):
        sparkdiff.verify(model, rows)


def test_spark_is_asked_about_what_is_wanted_only(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    after = attributes._after

    def watched(stage: Any, *arguments: Any) -> Any:
        asked.append(type(stage).__name__)
        return after(stage, *arguments)

    monkeypatch.setattr(attributes, "_after", watched)
    scaler = StandardScaler(inputCol="dense", outputCol="scaled").fit(rows.where("a < 3"))
    model = PipelineModel([scaler, VectorAssembler(inputCols=["a", "b"], outputCol="ab"), sliced(["b"], column="ab")])
    assert sparkdiff.plan(scaler).stages[0].role == "translated"
    assert asked == []
    assert reason(model, schema=rows.schema)[0] == "translated"
    assert asked == ["VectorAssembler"]


def test_a_source_column_is_what_its_first_reader_takes(rows: DataFrame) -> None:
    """Without a schema: `dense` is a vector, as a scaler reads it, also for what reads it directly."""
    scaler = StandardScaler(inputCol="dense", outputCol="scaled").fit(rows.where("a < 3"))
    sizes = VectorAssembler(inputCols=["scaled", "b"], outputCol="both")
    model = PipelineModel([scaler, sizes, Interaction(inputCols=["dense", "both", "a"], outputCol="out")])
    vertices = [
        Vertex(0, (0,), scaler.uid, "StandardScalerModel", scaler, ("dense",), sources=(("dense", -1),)),
        Vertex(
            1,
            (1,),
            sizes.uid,
            "VectorAssembler",
            sizes,
            ("scaled", "b"),
            sources=(("scaled", 0), ("b", -1)),
            parents=frozenset({0}),
        ),
    ]
    graph = Graph(str.lower, tuple(vertices))
    found = attributes.known_fields(graph, {("dense", -1), ("b", -1), ("a", -1), ("scaled", 0)}, None)
    kinds = {v: f.dataType.simpleString() for v, f in found.items()}
    assert kinds == {("dense", -1): "vector", ("b", -1): "double", ("a", -1): "double", ("scaled", 0): "vector"}
    assert sparkdiff.plan(model).stages[2].role == "translated"


def test_what_a_formula_keeps_to_itself(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewriter of slot names and the pruner of temporary columns, as stages of their own."""
    model = RFormula(formula="~ a:b + a").fit(rows)
    inside = {type(s).__name__: s for s in parts(model) or ()}
    df = rows.drop("dense").withColumnRenamed("sparse", "features").unionAll(rows.select("mixed", "mixed", "a", "b"))
    check([inside["VectorAttributeRewriter"]], df)
    pruner = inside["ColumnPruner"]  # reads and writes no column that a tensor could stand for
    assert sparkdiff.translate(pruner)({}) == {}
    made = inside["Interaction"].transform(df)
    assert len(made.columns) == len(df.columns) + 1
    for stage in (pruner, pruner.copy()):
        assert stage.transform(made).columns == df.columns
    monkeypatch.setattr(formula.AttributeRewriting, "forward", lambda self, x: dense(x).flip(1))
    with pytest.raises(LawBroken):
        check_stage(inside["VectorAttributeRewriter"], df)

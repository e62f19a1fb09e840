"""`sparkdiff.export`: the file's outputs are Spark's, its description is right, and what it cannot say is refused by name."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, RandomForestClassifier
from pyspark.ml.feature import (
    Bucketizer,
    Imputer,
    OneHotEncoder,
    RFormula,
    StringIndexer,
    VectorAssembler,
    VectorIndexer,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import (
    DecisionTreeRegressor,
    GBTRegressor,
    GeneralizedLinearRegression,
    IsotonicRegression,
)
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import InputError, SparkdiffError
from sparkdiff.jvm import SparkError
from sparkdiff.pipeline import parity
from sparkdiff.serving.onnx.export import ExportedColumn, OnnxGraph
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.binning import Bucketizer as Bins
from sparkdiff.stages.interaction import Interaction
from sparkdiff.stages.projection import DCT
from sparkdiff.stages.trees import RandomForestRegression
from tests.support import onnx_parity
from tests.support.bare_python import python_with
from tests.support.random_trees import rows as rows_of_trees
from tests.support.scoring import origin
from tests.support.small_networks import F64, least_squares, network, trees

ROOT = Path(__file__).parents[2]


def vector(*columns: str, keep: bool = True) -> VectorAssembler:
    return VectorAssembler(inputCols=[*columns], outputCol="vector", handleInvalid="keep" if keep else "error")


PIPELINES: dict[str, Callable[[], list[Any]]] = {
    "strings in front": lambda: [
        StringIndexer(inputCol="kind", outputCol="kindIndex", handleInvalid="keep"),
        OneHotEncoder(inputCols=["kindIndex", "index"], outputCols=["hot", "indexHot"], handleInvalid="keep"),
        vector("hot", "indexHot", "a"),
        LogisticRegression(featuresCol="vector", maxIter=3, threshold=0.4),
    ],
    "bins and gaps": lambda: [
        Imputer(inputCols=["a", "b"], outputCols=["a", "filled"], missingValue=7.0),
        Bucketizer(splits=[-np.inf, 0.0, 2.0, np.inf], inputCol="a", outputCol="bin", handleInvalid="keep"),
        vector("bin", "filled", "a"),
        GeneralizedLinearRegression(
            featuresCol="vector", labelCol="count", family="poisson", linkPredictionCol="eta", maxIter=2
        ),
    ],
    "trees of categories": lambda: [
        vector("index", "a", "b"),
        VectorIndexer(inputCol="vector", outputCol="indexed", maxCategories=4, handleInvalid="keep"),
        RandomForestClassifier(featuresCol="indexed", labelCol="grade", numTrees=5, maxDepth=4, seed=1, leafCol="leaf"),
    ],
    "boosted trees": lambda: [
        vector("index", "a", "b"),
        GBTRegressor(featuresCol="vector", labelCol="count", maxIter=4, maxDepth=3, leafCol="leaf"),
    ],
}


@pytest.fixture(scope="module")
def hostile(df: DataFrame) -> DataFrame:
    """Rows with NaN, infinities, both zeros and nulls in `a` and `b`, beside usual ones."""
    odd = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 7.0, 1e300, None]
    rows = [("abcz"[i % 4], float(i % 3), a, b) for i, (a, b) in enumerate((a, b) for a in odd for b in odd)]
    return df.sparkSession.createDataFrame(rows, "kind string, index double, a double, b double").coalesce(1).cache()


@pytest.mark.parametrize("name", PIPELINES)
def test_outputs_are_those_of_spark(
    name: str, df: DataFrame, hostile: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Pipeline(stages=PIPELINES[name]()).fit(df)
    monkeypatch.setattr(parity, "compare", onnx_parity.compared)
    for rows in (df, hostile.where("not isnan(a)") if name == "bins and gaps" else hostile):
        found = sparkdiff.verify(model, rows)
        assert found.ok, found


def test_the_file_runs_alone_and_tells_what_it_needs(df: DataFrame, tmp_path: Path) -> None:
    model = Pipeline(stages=PIPELINES["strings in front"]()).fit(df)
    described = sparkdiff.export(model, tmp_path / "new" / "model.onnx", schema=df.schema)
    session = onnxruntime.InferenceSession(str(tmp_path / "new" / "model.onnx"))
    told = json.loads(session.get_modelmeta().custom_metadata_map["sparkdiff"])
    assert told == json.loads(described.toJSON())
    where = {k: v for k, v in session.get_modelmeta().custom_metadata_map.items() if k != "sparkdiff"}
    assert where == origin(df.sparkSession)
    assert [i.name for i in session.get_inputs()] == [c.name for c in described.inputs]
    assert described.sparkStages == (model.stages[0].uid,)
    assert {c.name: c.width for c in described.outputs} == {"rawPrediction": 2, "probability": 2, "prediction": 1}
    rows = model.transform(df).select("kindIndex", "index", "a", "prediction", "probability").toPandas()
    given = {n: rows[n].to_numpy() for n in ("kindIndex", "index", "a")}
    flags = {c.name: np.zeros(len(rows), bool) for c in described.inputs if c.kind == "flag"}
    probability, prediction = session.run(["probability", "prediction"], given | flags)
    assert (prediction == rows["prediction"]).all()
    np.testing.assert_allclose(probability, np.stack([p.toArray() for p in rows["probability"]]), rtol=1e-12)
    assert "Spark runs before" in str(described)


def test_the_file_runs_where_only_onnxruntime_is_installed(df: DataFrame, tmp_path: Path) -> None:
    model = Pipeline(stages=PIPELINES["boosted trees"]()).fit(df)
    sparkdiff.export(model, tmp_path / "model.onnx", schema=df.schema, outputCols=["prediction"])
    asked = model.transform(df).select("index", "a", "b", "prediction").toPandas()
    np.savez(tmp_path / "rows.npz", **{name: asked[name].to_numpy() for name in asked})
    python = python_with(tmp_path / "bare", "onnxruntime")
    for module in ("torch", "pyspark", "sparkdiff", "onnx"):
        assert subprocess.run([python, "-E", "-c", f"import {module}"], capture_output=True, cwd="/").returncode != 0
    code = """
import numpy, onnxruntime
rows = dict(numpy.load("rows.npz"))
expected, session = rows.pop("prediction"), onnxruntime.InferenceSession("model.onnx")
flags = {i.name: numpy.zeros(len(expected), bool) for i in session.get_inputs() if i.type == "tensor(bool)"}
numpy.testing.assert_allclose(session.run(["prediction"], rows | flags)[0], expected, rtol=1e-12)
"""
    subprocess.run([python, "-E", "-c", code], check=True, cwd=tmp_path, timeout=400)


@pytest.mark.parametrize("invalid", ["error", "keep", "skip"])
@pytest.mark.parametrize(
    "terms", ["a + kind + kind:a", *(pytest.param(t, marks=pytest.mark.nightly) for t in ("a + kind", ". - a - 1"))]
)
def test_a_formula_reads_its_texts_by_their_names(df: DataFrame, tmp_path: Path, invalid: str, terms: str) -> None:
    """Fitted twice, as its own columns are called otherwise each time; with texts that it does not know, and null."""
    rows = [(float(i % 7), "xyzw"[i % 4], "éb"[i % 2], ["no", "yes"][i * i % 5 % 2]) for i in range(80)]
    known = df.sparkSession.createDataFrame(rows, "a double, kind string, `other kind` string, bought string")
    odd = [
        (1.0, "x", "é", "yes"),
        (2.0, "new", "b", "no"),
        (3.0, None, "b", "no"),
        (1.0, "z", None, "no"),
        (0.0, "", "b", "yes"),
    ]
    new = df.sparkSession.createDataFrame(odd, known.schema)
    unfitted = Pipeline(
        stages=[RFormula(formula=f"bought ~ {terms}", handleInvalid=invalid), LogisticRegression(maxIter=3)]
    )
    names = []
    for _ in range(2):
        model = unfitted.fit(known)
        model.write().overwrite().save(f"file://{tmp_path}/model")
        model = PipelineModel.load(f"file://{tmp_path}/model")
        described = sparkdiff.export(model, tmp_path / "m.onnx", schema=known)
        names.append([(c.name, c.kind) for c in described.inputs])
    assert names[0] == names[1]
    formula = model.stages[0]
    if invalid == "skip":  # it leaves out rows, which only Spark can
        assert names[0] == [("features", "vector")] and described.sparkStages == (formula.uid,)
        return
    assert described.sparkStages == () and ("kind", "text") in names[0] and ("kind is null", "flag") in names[0]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for row in new.collect():
        given: dict[str, Any] = {}
        for name, kind in names[0]:
            value = row[name.removesuffix(" is null")]
            text = np.array([value or ""], object)
            given[name] = text if kind == "text" else np.array([value is None if kind == "flag" else value])
        found = onnx_parity.run(session, given)
        try:
            [expected] = model.transform(df.sparkSession.createDataFrame([row], known.schema)).collect()
        except SparkError:
            assert found["refused by Spark"].tolist() == [True], row
        else:
            assert not found["refused by Spark"].any(), row
            np.testing.assert_allclose(found["probability"][0], expected["probability"].toArray(), rtol=1e-12)


def test_an_isotonic_regression_reads_one_entry_of_a_vector(df: DataFrame, tmp_path: Path) -> None:
    rows = df.sparkSession.createDataFrame(
        [(Vectors.dense([float(i), -float(i * i), 1.0]), float(i)) for i in range(8)], ["features", "label"]
    )
    model = IsotonicRegression(featureIndex=1, isotonic=False).fit(rows)
    expected = [r["prediction"] for r in model.transform(rows).collect()]
    given = {"features": np.array([r["features"].toArray() for r in rows.collect()])}
    for known in ({"schema": rows}, {"widths": {"features": 3}}):
        described = sparkdiff.export(model, tmp_path / "m.onnx", **known)  # type: ignore[arg-type]
        assert described.inputs == (ExportedColumn("features", "vector", 3),)
        found = onnx_parity.run(onnxruntime.InferenceSession(str(tmp_path / "m.onnx")), given)
        assert found["prediction"].tolist() == expected
    with pytest.raises(InputError, match="it reads entry 1 of vectors of 1 entries"):
        sparkdiff.export(model, tmp_path / "m.onnx", widths={"features": 1})


def test_rows_that_spark_refuses_are_marked(df: DataFrame, tmp_path: Path) -> None:
    model = Pipeline(
        stages=[vector("a", "b", keep=False), DecisionTreeRegressor(featuresCol="vector", labelCol="count")]
    ).fit(df)
    described = sparkdiff.export(model, str(tmp_path / "m.onnx"), outputCols=["prediction"])
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    given = {"a": np.array([1.0, np.nan, 2.0]), "b": np.array([1.0, 1.0, np.inf])}
    assert session.run(["refused by Spark"], given)[0].tolist() == [False, True, False]
    assert "null or NaN in 'a'" in described.refuses[0]


def test_a_cosine_transform_of_what_is_not_finite_is_marked() -> None:
    session = exported((DCT(False, "waves", "v"), ["v"], "o"), widths={"v": 3})
    given = np.array([[1.0, x, 0.0] for x in (2.0, np.nan, np.inf, -np.inf, 1e200, -1.7e308)])
    found = onnx_parity.run(session, {"v": given})
    assert found["refused by Spark"].tolist() == [False, False, True, True, False, True]


def test_null_in_an_interaction_is_marked() -> None:
    session = exported((Interaction("i", ("a", "b"), (1, 1), ("", "")), ["a", "b"], "o"), widths={})
    given = {"a": np.array([1.0, np.nan]), "b": np.array([2.0, 2.0]), "b is null": np.zeros(2, bool)}
    found = onnx_parity.run(session, given | {"a is null": np.array([False, True])})
    assert found["refused by Spark"].tolist() == [False, True]
    assert found["o"][0].tolist() == [2.0]


def exported(*stages: tuple[StageModule, list[str], str], widths: dict[str, int]) -> onnxruntime.InferenceSession:
    """The last column of stages without Spark; inputs without a width are numbers."""
    net = network(*stages)
    wanted = [(stages[-1][2], len(stages) - 1)]
    return onnx_parity.session_of(OnnxGraph(net, wanted, {v: widths.get(v[0]) for v in net.reads}))


def test_nan_from_a_stage_that_writes_no_null_is_refused() -> None:
    bins = Bins("splits", [torch.tensor([-9.0, 0.0, 9.0], dtype=F64)], False, "bins", ("p",))
    session = exported((least_squares(1), ["v"], "p"), (bins, ["p"], "bin"), widths={"v": 1})
    found = onnx_parity.run(session, {"v": np.array([[0.0], [np.nan]])})
    assert found["refused by Spark"].tolist() == [False, True]


def test_trees_may_send_none_or_all_categories_left() -> None:
    """An empty set of categories, written so that onnxruntime takes it."""
    for seed in range(9):  # their categorical splits hold from none to all
        forest = trees(RandomForestRegression, seed, number=9)
        x = rows_of_trees(60)
        session = exported((forest, ["v"], "p"), widths={"v": x.shape[1]})
        [expected] = forest(torch.from_numpy(x))
        np.testing.assert_allclose(onnx_parity.run(session, {"v": x})["p"], expected.detach(), rtol=1e-12, atol=1e-12)


def test_refusals_name_the_stage_and_the_way_out(df: DataFrame, fitted: dict[str, Any], tmp_path: Path) -> None:
    rows = df.withColumn("share", F.col("label"))
    probit = GeneralizedLinearRegression(
        featuresCol="vector", labelCol="share", family="binomial", link="probit", maxIter=1
    )
    model = Pipeline(stages=[vector("a"), probit]).fit(rows)
    for given, settings, what in (
        (model, {}, rf"{model.stages[1].uid} .*probit.*outputCols"),
        (
            fitted["linear"],
            {"outputCols": ["predicted"]},
            "no translated stage writes column 'predicted'. Did you mean",
        ),
        (fitted["indexer"], {}, r"no stage of this pipeline is translated: see sparkdiff.plan"),
        (fitted["linear"], {"path": "hdfs://host/m.onnx"}, "hdfs"),
        (fitted["linear"], {"path": str(tmp_path)}, "is a folder: name a file in it, such as .*model.onnx"),
    ):
        with pytest.raises(InputError, match=what):
            sparkdiff.export(given, **{"path": str(tmp_path / "m.onnx"), **settings})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SparkdiffError, match=r"the ONNX file cannot be written to .*; choose another folder"):
        sparkdiff.export(fitted["linear"], tmp_path / "file" / "m.onnx")


def test_the_width_of_a_vector_comes_from_the_data(df: DataFrame, fitted: dict[str, Any], tmp_path: Path) -> None:
    bare = F.udf(lambda v: v, fitted["assembler"].transform(df).schema["vector"].dataType)
    rows = fitted["assembler"].transform(df).select(bare("vector").alias("v"), "a")
    model = VectorAssembler(inputCols=["v", "a"], outputCol="o")
    with pytest.raises(
        InputError, match=r"vectors in column 'v' have is unknown: pass the data \(schema=df\), or widths="
    ):
        sparkdiff.export(model, tmp_path / "m.onnx", schema=rows.schema)
    for settings in ({"schema": rows}, {"schema": rows.schema, "widths": {"v": 3}}):
        assert [c.width for c in sparkdiff.export(model, tmp_path / "m.onnx", **settings).inputs] == [3, 1]


@pytest.mark.parametrize("stages", [["scaler"], ["pca", "linear"], ["slicer"], ["vectorIndexer"], ["assembled"]])
def test_without_a_schema_a_first_reader_tells_what_is_a_vector(
    stages: list[str], df: DataFrame, fitted: dict[str, Any], tmp_path: Path
) -> None:
    rows = fitted["assembler"].transform(df)
    indexer = VectorIndexer(inputCol="vector", outputCol="indexed", maxCategories=3)
    made = fitted | {
        "slicer": VectorSlicer(inputCol="vector", outputCol="s", indices=[2, 0]),
        "vectorIndexer": indexer.fit(rows) if "vectorIndexer" in stages else None,
        "assembled": VectorAssembler(inputCols=["a", "vector"], outputCol="both"),
    }
    model = PipelineModel([made[name] for name in stages])
    ambiguous = "assembled" in stages  # what an assembler reads may be a number, too
    if stages == ["slicer"]:
        with pytest.raises(InputError, match="vectors in column 'vector' have is unknown"):
            sparkdiff.export(model, tmp_path / "m.onnx")
    elif not ambiguous:
        assert sparkdiff.export(model, tmp_path / "m.onnx").inputs == (ExportedColumn("vector", "vector", 3),)
    described = sparkdiff.export(model, tmp_path / "m.onnx", widths={"VECTOR": 3})
    numbers = (ExportedColumn("a", "number", 1),) if ambiguous else ()
    assert described.inputs == (*numbers, ExportedColumn("vector", "vector", 3))
    theirs = model.transform(rows).toPandas()
    given = {"a": theirs["a"].to_numpy(), "vector": np.stack(theirs["vector"].map(lambda v: v.toArray()))}
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    output = described.outputs[0].name
    [found] = session.run([output], {c.name: given[c.name] for c in described.inputs})
    wished = np.stack([getattr(v, "toArray", lambda v=v: v)() for v in theirs[output]])
    np.testing.assert_allclose(found, wished, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("widths", "what"),
    [
        ({"vectr": 3}, r"widths: column 'vectr' is no input of the file.* Did you mean 'vector'\?"),
        ({"vector": "3"}, r"widths=\{'vector': '3'\} must be a whole number"),
        ({"vector": 5}, r"widths=\{'vector': 5\}, but a stage that reads it was fitted on 3 entries"),
    ],
)
def test_a_width_that_cannot_be_is_refused(
    widths: dict[str, Any], what: str, fitted: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        sparkdiff.export(fitted["scaler"], tmp_path / "m.onnx", widths=widths)


def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_table", ROOT / "tools" / "export_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_classes_is_what_its_tool_writes() -> None:
    tool = table()
    text = tool.PAGE.read_text("utf-8")
    assert tool.page(text) == text, "run tools/export_table.py; a class that is no longer exported is a loss"
    assert all(tool.classes().values())

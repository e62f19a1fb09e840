"""The public contract of plan, translate, write_back and verify, line by line, as a stranger's suite would hold us to it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    OneHotEncoder,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, Parity, Plan, jvm
from tests.support.readable_uids import named


@pytest.fixture(scope="module")
def model(df: DataFrame) -> PipelineModel:
    """Strings, indices, numbers, a constant column; nested; two predictors, one on the other's probability."""
    head = named("head", LinearRegression, featuresCol="all", labelCol="count", regParam=0.1)
    return Pipeline(
        stages=[
            named("index", StringIndexer, inputCol="kind", outputCol="kindIndex"),
            Pipeline(
                stages=[
                    named("encoder", OneHotEncoder, inputCols=["kindIndex"], outputCols=["hot"]),
                    named("assembler", VectorAssembler, inputCols=["hot", "a", "b", "c"], outputCol="vector"),
                ]
            ),
            named("scaler", StandardScaler, inputCol="vector", outputCol="scaled", withMean=True),
            named(
                "below", LogisticRegression, featuresCol="scaled", labelCol="grade", predictionCol="below", maxIter=3
            ),
            named("join", VectorAssembler, inputCols=["scaled", "probability"], outputCol="all"),
            head,
        ]
    ).fit(df)


@pytest.fixture
def network(model: PipelineModel) -> sparkdiff.Network:
    return sparkdiff.translate(model)


def columns(df: DataFrame, network: sparkdiff.Network) -> dict[str, torch.Tensor]:
    """What the network wants, collected from Spark."""
    rows = (network.reference.transform(df) if network.reference else df).select(*network.inputCols).toPandas()
    return {c: torch.tensor(rows[c].to_numpy(dtype=np.float64)) for c in network.inputCols}


@pytest.fixture(scope="module")
def expected(model: PipelineModel, df: DataFrame) -> Any:
    return model.transform(df).toPandas()


def array(column: Any) -> np.ndarray:
    first = column.iloc[0]
    return np.stack([v.toArray() for v in column]) if hasattr(first, "toArray") else column.to_numpy()


# translate --------------------------------------------------------------------------------------------------------------


def test_every_translated_column_is_there_and_right(model: Any, network: Any, df: DataFrame, expected: Any) -> None:
    assert isinstance(network, torch.nn.Module)
    assert network.inputCols == ("kindIndex", "a", "b", "c")
    assert network.outputCols == (
        "hot",
        "vector",
        "scaled",
        "rawPrediction",
        "probability",
        "below",
        "all",
        "prediction",
    )
    assert isinstance(network.reference, PipelineModel)
    assert [s.uid for s in network.reference.stages] == ["index"]
    out = network(columns(df, network))
    assert tuple(out) == network.outputCols
    shapes = {
        "hot": (120, 2),
        "vector": (120, 5),
        "scaled": (120, 5),
        "all": (120, 8),
        "rawPrediction": (120, 3),
        "probability": (120, 3),
        "below": (120,),
        "prediction": (120,),
    }
    for name, shape in shapes.items():
        assert out[name].dtype == torch.float64, name
        assert out[name].layout == torch.strided, name
        assert tuple(out[name].shape) == shape, name
        np.testing.assert_allclose(
            out[name].detach().numpy(), array(expected[name]), rtol=1e-9, atol=1e-9, err_msg=name
        )


def test_parameters_are_sparks_own(model: Any, network: Any) -> None:
    assert all(p.dtype == torch.float64 for p in network.parameters())
    scaler, head = network.module(3), network.head
    assert scaler.mean.tolist() == model.stages[2].mean.toArray().tolist()
    assert scaler.std.tolist() == model.stages[2].std.toArray().tolist()
    assert head.coefficients.tolist() == model.stages[5].coefficients.toArray().tolist()
    assert head.intercept.item() == model.stages[5].intercept


INTO = {
    "float32": lambda x: x.float(),
    "int32": lambda x: x.round().int(),
    "int8": lambda x: x.round().char(),
    "bool": lambda x: x > 0,
    "half": lambda x: x.half(),
    "not contiguous": lambda x: torch.stack([x, x], 1)[:, 0],
}


@pytest.mark.parametrize("kind", INTO)
def test_numbers_of_any_kind(network: Any, df: DataFrame, kind: str) -> None:
    given = columns(df, network)
    cast = {**given, "a": INTO[kind](given["a"])}
    out, wished = network(cast), network({**given, "a": cast["a"].double()})
    for name in network.outputCols:
        assert out[name].dtype == torch.float64
        assert torch.equal(out[name], wished[name]), name


def test_selecting_outputs(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    everything = network(given)
    assert list(network(given, ["prediction"])) == ["prediction"]
    assert list(network(given, ("SCALED", "hot"))) == ["scaled", "hot"]
    assert list(network(given, "below")) == ["below"]
    assert network(given, []) == {}
    for name in network.outputCols:
        assert torch.equal(network(given, [name])[name], everything[name])
    assert torch.equal(
        network({"kindIndex": given["kindIndex"]}, ["hot"])["hot"], everything["hot"]
    )  # no more is needed
    with pytest.raises(InputError, match=r"no translated stage writes column 'predicton'\. Did you mean 'prediction'"):
        network(given, ["predicton"])
    with pytest.raises(InputError, match="no translated stage writes column 'kindIndex'"):
        network(given, ["kindIndex"])


def test_extra_keys_and_missing_ones(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    same = network({**given, "extra": torch.zeros(3), "kind": None, "prediction": torch.ones(1)})
    assert torch.equal(same["prediction"], network(given)["prediction"])
    for name, stage in (("kindIndex", "encoder"), ("b", "assembler")):
        with pytest.raises(InputError, match=rf"{stage} needs column '{name}', which was not passed"):
            network({c: x for c, x in given.items() if c != name})


def test_names_as_spark_finds_them(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    assert torch.equal(network({c.upper(): x for c, x in given.items()})["prediction"], network(given)["prediction"])


def test_no_row_and_one_row(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    for rows in (0, 1):
        out = network({c: x[:rows] for c, x in given.items()})
        assert {name: len(x) for name, x in out.items()} == dict.fromkeys(network.outputCols, rows)
    whole = network(given)
    one = network({c: x[5:6] for c, x in given.items()})
    assert all(torch.allclose(one[c], whole[c][5:6], rtol=1e-14, atol=1e-14) for c in network.outputCols)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no mapping": (lambda given: list(given), "a network takes tensors by column name, got list"),
    "numpy": (lambda given: {**given, "a": np.ones(120)}, "column 'a' must be a torch tensor, got ndarray"),
    "lengths": (lambda given: {**given, "a": torch.ones(4)}, r"columns must have the same length, got .* 4 in 'a'"),
    "three dimensions": (
        lambda given: {**given, "a": torch.ones(120, 1, 1)},
        r"'a' must be \(n,\) or \(n, d\), got shape",
    ),
    "a number": (lambda given: {**given, "a": torch.tensor(1.0)}, r"'a' must be \(n,\) or \(n, d\), got shape \(\)"),
    "complex": (
        lambda given: {**given, "a": torch.ones(120, dtype=torch.complex64)},
        "of real numbers, got torch.complex64",
    ),
    "COO": (
        lambda given: {**given, "a": torch.ones(120, 2).to_sparse()},
        "strided or CSR tensor .* got torch.sparse_coo",
    ),
    "a category": (
        lambda given: {**given, "kindIndex": torch.full((120,), 9.0)},
        "encoder: column 'kindIndex' holds .* 9.0",
    ),
    "NaN": (lambda given: {**given, "b": torch.full((120,), np.nan)}, "assembler: column 'b' holds null or NaN"),
    "a vector": (lambda given: {**given, "a": torch.ones(120, 2)}, r"scaler can't compute on .* 'vector' \(120, 6\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_named(network: Any, df: DataFrame, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        network(change(columns(df, network)))


@pytest.mark.parametrize("into", [lambda x: x, lambda x: x.to_sparse_csr()], ids=["strided", "CSR"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 2), (3,), (5,)])
def test_vectors_of_another_width_are_named(fitted: dict[str, Any], into: Any, shape: tuple[int, ...]) -> None:
    for name in ("scaler", "minmax", "pca", "linear", "glr", "logistic", "softmax"):
        x = torch.ones(shape)
        with pytest.raises(InputError, match=rf"{name} needs 3 entries per row in column 'vector', got "):
            sparkdiff.translate(fitted[name])({"vector": into(x) if x.ndim == 2 else x})


def test_layouts(df: DataFrame, fitted: dict[str, Any]) -> None:
    """A vector output is strided, except CSR where an input is CSR and the stage keeps zeros, and one-hot from 1,024 columns."""
    x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 7.0]], dtype=torch.float64)
    no_mean = fitted["scaler"].copy({fitted["scaler"].withMean: False})
    for stage, column, keeps in (
        (no_mean, "scaled", True),
        (fitted["scaler"], "scaled", False),
        (fitted["minmax"], "squeezed", False),
        (fitted["pca"], "components", False),
        (VectorAssembler(inputCols=["vector", "a"], outputCol="out"), "out", True),
    ):
        network = sparkdiff.translate(stage)
        given = {"vector": x, "a": torch.ones(2)}
        strided, csr = network(given)[column], network({**given, "vector": x.to_sparse_csr()})[column]
        assert strided.layout == torch.strided
        assert csr.layout == (torch.sparse_csr if keeps else torch.strided), column
        assert torch.equal(csr.to_dense() if keeps else csr, strided)
    for index in (torch.int32, torch.int64):
        few = x.to_sparse_csr()
        few = torch.sparse_csr_tensor(
            few.crow_indices().to(index), few.col_indices().to(index), few.values().float(), x.shape
        )
        found = sparkdiff.translate(fitted["linear"])({"vector": few})["prediction"]
        assert (found.dtype, found.shape) == (torch.float64, (2,))
        assert torch.equal(found, sparkdiff.translate(fitted["linear"])({"vector": x})["prediction"])
    for size, layout in ((1023, torch.strided), (1024, torch.sparse_csr)):
        attributes = {"ml_attr": {"type": "nominal", "num_vals": size}}
        known = df.select(F.lit(0.0).alias("i", metadata=attributes))
        hot = OneHotEncoder(inputCol="i", outputCol="o", dropLast=False).fit(known)
        out = sparkdiff.translate(hot)({"i": torch.tensor([0, size - 1])})["o"]
        assert (out.layout, out.shape) == (layout, (2, size))


def test_requires_grad_is_what_the_plan_says(model: Any, network: Any, df: DataFrame) -> None:
    for i, planned in enumerate(sparkdiff.plan(model).stages):
        grads = [p.requires_grad for p in network.module(i).parameters()] if i in network.positions else []
        assert any(grads) == planned.trainable, planned.uid
    network(columns(df, network))["prediction"].sum().backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_gradients_to_the_inputs(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    given["a"].requires_grad_()
    network(given)["prediction"].sum().backward()
    assert given["a"].grad.abs().sum() > 0


def test_a_module_like_any_other(network: Any, df: DataFrame) -> None:
    given = columns(df, network)
    before = network(given)["prediction"]
    state = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    assert not torch.equal(network(given)["prediction"], before)
    network.load_state_dict(state)
    assert torch.equal(network.eval()(given)["prediction"], before)
    assert torch.equal(network.double().train()(given)["prediction"], before)


# plan -------------------------------------------------------------------------------------------------------------------


def test_the_plan(model: Any, df: DataFrame) -> None:
    found = sparkdiff.plan(model, schema=df.schema)
    assert isinstance(found, Plan)
    assert [(s.path, s.uid, s.role) for s in found.stages] == [
        ((0,), "index", "referenced"),
        ((1, 0), "encoder", "translated"),
        ((1, 1), "assembler", "translated"),
        ((2,), "scaler", "translated"),
        ((3,), "below", "translated"),
        ((4,), "join", "translated"),
        ((5,), "head", "translated"),
    ]
    assert all(s.reason for s in found.stages)
    assert {s.role for s in found.stages} <= {"translated", "referenced"}
    assert all(s.cached for s in found.stages if s.role == "referenced")
    assert list(found.toPandas()["uid"]) == [s.uid for s in found.stages]
    network = sparkdiff.translate(model)
    assert [i for i, s in enumerate(found.stages) if s.role == "translated"] == list(network.positions)
    assert found.cacheCols == ("kindIndex", "a", "b", "c")


@pytest.mark.parametrize("option", ["freeze", "reference", "target"])
def test_ways_to_name_a_stage(model: Any, option: str) -> None:
    for name in ("scaler", "StandardScalerModel", "scaled", model.stages[2]):
        assert sparkdiff.plan(model, **{option: name}) == sparkdiff.plan(model, **{option: [name]})
        (scaler,) = (s for s in sparkdiff.plan(model, **{option: name}).stages if s.uid == "scaler")
        assert scaler.trainable == (option == "target")
    with pytest.raises(InputError, match=f"{option}='scalar' is no uid"):
        sparkdiff.plan(model, **{option: "scalar"})


# write_back -------------------------------------------------------------------------------------------------------------


def snapshot(model: Any) -> list[Any]:
    stages = [model.stages[0], *model.stages[1].stages, *model.stages[2:]]
    weights = [p.tolist() for p in sparkdiff.translate(model).parameters()]
    return [*((s.uid, type(s), jvm.defined_params(s)) for s in stages), weights]


@pytest.mark.usefixtures("route")
def test_write_back(model: Any, network: Any, df: DataFrame) -> None:
    before, objects = snapshot(model), list(model.stages)
    assert sparkdiff.write_back(model, network) is model
    with torch.no_grad():
        network.head.coefficients.mul_(1.25)
        network.module(3).mean[:4] += 0.5  # not of the constant column, which never counts
    new = sparkdiff.write_back(model, network)
    assert (type(new), new.uid) == (PipelineModel, model.uid)
    assert [a is b for a, b in zip(new.stages, objects, strict=True)] == [True, True, False, True, True, False]
    assert snapshot(new)[:-1] == before[:-1]
    assert new.stages[2].mean.toArray().tolist() == network.module(3).mean.tolist()
    assert new.stages[5].coefficients.toArray().tolist() == network.head.coefficients.tolist()
    assert [f.metadata for f in new.transform(df).schema] == [f.metadata for f in model.transform(df).schema]
    assert snapshot(model) == before
    assert all(a is b for a, b in zip(model.stages, objects, strict=True))
    assert sparkdiff.verify(new, df, network=network).ok
    assert sparkdiff.verify(model, df).ok
    assert not sparkdiff.verify(model, df, network=network).ok


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_finite_values_are_written(model: Any, network: Any, value: float) -> None:
    with torch.no_grad():
        network.module(3).mean[1] = value
    with pytest.raises(InputError, match=f"scaler: mean holds {value}"):
        sparkdiff.write_back(model, network)


def test_a_constraint_is_named(model: Any, network: Any) -> None:
    with torch.no_grad():
        network.module(3).std[2] = -1.0
    with pytest.raises(InputError, match=r"scaler: std must stay > 0"):
        sparkdiff.write_back(model, network)


def test_a_single_stage(df: DataFrame, fitted: dict[str, Any]) -> None:
    """In and out, for each class."""
    rows = fitted["assembler"].transform(df)
    for name in ("scaler", "minmax", "pca", "linear", "glr", "logistic", "softmax", "encoder", "assembler"):
        stage = fitted[name]
        network = sparkdiff.translate(stage)
        assert network.reference is None
        assert [s.path for s in sparkdiff.plan(stage).stages] == [()]
        assert sparkdiff.write_back(stage, network) is stage
        if any(True for _ in network.parameters()):
            with torch.no_grad():
                for p in network.parameters():
                    p.mul_(1.5)
            new = sparkdiff.write_back(stage, network)
            assert (type(new), new.uid) == (type(stage), stage.uid)
            assert new is not stage
    assert sparkdiff.verify(fitted["softmax"], rows).ok
    indexer = fitted["indexer"]
    network = sparkdiff.translate(indexer)
    assert (network.outputCols, sparkdiff.write_back(indexer, network) is indexer) == ((), True)


# verify -----------------------------------------------------------------------------------------------------------------


def test_parity(model: Any, df: DataFrame) -> None:
    found = sparkdiff.verify(model, df)
    assert isinstance(found, Parity)
    assert (
        set(found.maxAbsDiff)
        == set(found.maxRelDiff)
        == {"hot", "vector", "scaled", "rawPrediction", "probability", "all", "prediction"}
    )
    assert (found.rows, found.labelDisagreements, found.ok) == (120, 0, True)
    assert max(found.maxRelDiff.values()) <= 1e-9


def test_a_label_that_differs_counts_as_a_label(df: DataFrame, fitted: dict[str, Any]) -> None:
    """`prediction` of a classifier has no difference, only disagreements; ok where the margin lies on the boundary."""
    rows, stage = fitted["assembler"].transform(df), fitted["logistic"]
    found = sparkdiff.verify(stage, rows)
    assert "prediction" not in found.maxRelDiff
    network = sparkdiff.translate(stage)
    with torch.no_grad():
        network.head.interceptVector.add_(1.0)
    moved = sparkdiff.verify(stage, rows, network=network)
    assert not moved.ok
    assert 0 < moved.labelDisagreements < moved.rows
    assert moved.maxRelDiff["rawPrediction"] > 0.05


def test_nothing_to_compare(model: Any, df: DataFrame, fitted: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no rows to compare"):
        sparkdiff.verify(model, df.limit(0))
    with pytest.raises(InputError, match="no column to compare"):
        sparkdiff.verify(fitted["indexer"], df)
    with pytest.raises(InputError, match="assembler reads column 'b', which is not in the data"):
        sparkdiff.verify(model, df.drop("b"))


def test_nan_equals_nan_and_infinities_by_sign(spark: SparkSession, fitted: dict[str, Any]) -> None:
    keep = VectorAssembler(inputCols=["a", "b", "c"], outputCol="vector", handleInvalid="keep")
    inner = SQLTransformer(statement="SELECT *, a * 2 AS twice FROM __THIS__")
    model = PipelineModel([inner, keep, fitted["scaler"], fitted["linear"]])
    values = [(1.0, 2.0, None), (float("nan"), 1.0, 7.0), (float("inf"), 0.0, 7.0), (float("-inf"), 0.0, 7.0)]
    df = spark.createDataFrame(values, "a double, b double, c double")
    network = sparkdiff.translate(model)
    found = sparkdiff.verify(model, df, network=network)
    assert found.ok, found
    with torch.no_grad():
        network.head.coefficients.mul_(-1.0)
    assert sparkdiff.verify(model, df, network=network).maxRelDiff["prediction"] == float("inf")


def test_transformers_are_models_too() -> None:
    """A stage that was never fitted because nothing in it could be."""
    stage: Transformer = VectorAssembler(inputCols=["a"], outputCol="v")
    network = sparkdiff.translate(stage)
    assert network({"a": torch.tensor([1, 2])})["v"].tolist() == [[1.0], [2.0]]
    assert sparkdiff.write_back(stage, network) is stage
    assert sparkdiff.plan(stage).stages[0].role == "translated"

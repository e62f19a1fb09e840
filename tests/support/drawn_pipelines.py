"""Pipelines drawn at random: stages of every class with Params of every value, a table to fit them on, and rows with edges.

A number decides a pipeline. What every 200 pipelines in a row must contain stands in a shuffled deck (`needed_of`), of which
each takes its part; the rest is chance.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from math import inf, nan
from typing import Any

import numpy as np
from pyspark.ml import Transformer, classification as c, clustering as k, feature as f, regression as r
from pyspark.ml.linalg import DenseVector, SparseVector, Vector, Vectors, VectorUDT
from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.recommendation import ALS
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructType,
)

from sparkdiff.pipeline.schema import fields_by_name, width_in
from tests.support.readable_uids import named

# Stages of the user's own ----------------------------------------------------------------------------------------------


class Own(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[type-arg]
    """A stage as users write them; the mixin gives it a default outputCol."""

    def __init__(self, inputCol: str | None = None, outputCol: str | None = None):
        super().__init__()
        given = {"inputCol": inputCol, "outputCol": outputCol}
        self._set(**{name: value for name, value in given.items() if value is not None})


class Doubled(Own):
    """Writes its column by Spark's functions."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn(self.getOutputCol(), F.col(self.getInputCol()) * 2)


class SquaredInPython(Own):
    """Writes its column by a function in Python."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        square = F.udf(lambda x: None if x is None else x * x, "double")
        return dataset.withColumn(self.getOutputCol(), square(self.getInputCol()))


class DoubledAndShifted(Own):
    """Writes its column, and rewrites the one that it reads."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        doubled = dataset.withColumn(self.getOutputCol(), F.col(self.getInputCol()) * 2)
        return doubled.withColumn(self.getInputCol(), F.col(self.getInputCol()) + 1)


class Filtered(Own):
    """Writes its column, and drops rows."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        x = F.col(self.getInputCol())
        return dataset.where(x.isNull() | (x > -1.5)).withColumn(self.getOutputCol(), F.abs(x))


OWN = (Doubled, SquaredInPython, DoubledAndShifted, Filtered)

# What is drawn --------------------------------------------------------------------------------------------------------

TYPES: dict[str, DataType] = {
    "double": DoubleType(),
    "float": FloatType(),
    "int": IntegerType(),
    "bigint": LongType(),
    "boolean": BooleanType(),
    "decimal": DecimalType(8, 2),
    "string": StringType(),
    "words": ArrayType(StringType()),
    "vector": VectorUDT(),
}
SOURCES = {
    "a": "double",
    "b": "double",
    "x": "float",
    "n": "int",
    "big": "bigint",
    "flag": "boolean",
    "price": "decimal",
    "constant": "double",
    "index": "double",
    "code": "double",
    "kind": "string",
    "text": "string",
    "words": "words",
    "v": "vector",
    "w": "vector",
    "counts": "vector",
    "user": "int",
    "item": "int",
}
"""The type of each column that stages read."""
KINDS = {"index": "index", "code": "index", "kind": "category", "counts": "counts", "user": "id", "item": "id"}
"""What a column holds, where that is more than its type says."""
LABELS = {"label": "double", "grade": "double", "target": "double", "censor": "double", "weight": "double"}
NUMBERS = ("double", "index", "float", "int", "bigint")
VECTORS = ("vector", "counts")
EDGES = ("null", "NaN", "+inf", "-inf", "-0.0", "unseen category", "sparse vector", "dense vector", "mixed batch")
TEXTS = ["the cat sat", "A Dog IN a cat", "cat", "dog, the-dog", "a b c d"]


@dataclass(frozen=True)
class Stage:
    """A stage by its class and its Params; a Param may be a stage in turn."""

    kind: type
    uid: str
    params: dict[str, Any]

    def made(self) -> Any:
        given = {name: value.made() if isinstance(value, Stage) else value for name, value in self.params.items()}
        taken = inspect.signature(self.kind).parameters
        made = named(self.uid, self.kind, **{name: value for name, value in given.items() if name in taken})
        for name in given.keys() - taken.keys():
            made._set(**{name: given[name]})
        return made

    def code(self) -> str:
        said = {
            name: value.code() if isinstance(value, Stage) else value_code(value) for name, value in self.params.items()
        }
        taken = inspect.signature(self.kind).parameters
        first = [f"{name}={value}" for name, value in said.items() if name in taken]
        later = [f"._set({name}={value})" for name, value in said.items() if name not in taken]
        return f"named({', '.join([repr(self.uid), self.kind.__name__, *first])}){''.join(later)}"

    def all(self) -> "list[Stage]":
        return [self, *(s for value in self.params.values() if isinstance(value, Stage) for s in value.all())]

    def text(self) -> str:
        """All that its Params say, to find names of columns in."""
        return repr([value.text() if isinstance(value, Stage) else value for value in self.params.values()])


@dataclass(frozen=True)
class Case:
    """A pipeline, the table that it is fitted on, and the rows that it is asked about; both have the same columns.

    Attributes:
        language: that of the JVM in which it is fitted and asked.
    """

    stages: tuple[Stage, ...]
    train: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    types: dict[str, str]
    language: str = "en"

    def read(self) -> list[str]:
        """The columns of the data that stages name."""
        said = " ".join(stage.text() for stage in self.stages)
        return [name for name in self.types if re.search(rf"\b{name}\b", said)]

    def schema(self) -> StructType:
        out = StructType()
        for name, kind in self.types.items():
            out = out.add(name, TYPES[kind])
        return out

    def frame(self, spark: SparkSession, rows: Sequence[dict[str, Any]], partitions: int = 1) -> DataFrame:
        """These rows as a DataFrame, which reads them without a process of Python, as that of `createDataFrame` does."""
        schema = self.schema()
        data = [schema.toInternal(tuple(row[name] for name in self.types)) for row in rows]
        java = spark._jvm.SerDeUtil  # type: ignore[union-attr]
        pickled = spark.sparkContext.parallelize(data, partitions)._jrdd
        objects = java.toJavaArray(java.pythonToJava(pickled, True))
        return DataFrame(spark._jsparkSession.applySchemaToPythonRDD(objects.rdd(), schema.json()), spark)


# Which values a Param has ---------------------------------------------------------------------------------------------

VALUES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("Imputer", "strategy"): ("mean", "median", "mode"),
    ("KMeans", "initMode"): ("random", "k-means||"),
    ("TargetEncoder", "targetType"): ("binary", "continuous"),
    ("NaiveBayes", "modelType"): ("multinomial", "bernoulli", "gaussian", "complement"),
    **{
        (f"{name}{task}", "featureSubsetStrategy"): ("auto", "all", "onethird", "sqrt", "log2")
        for name in ("GBT", "RandomForest")
        for task in ("Classifier", "Regressor")
    },
}
"""Where the Param's own words don't list them in the usual way."""


def values_of(stage: Any) -> dict[str, tuple[Any, ...]]:
    """Per boolean or enumerated Param of a stage its values, as its words list them."""
    found: dict[str, tuple[Any, ...]] = {}
    for param in stage.params:
        key, default = (
            (type(stage).__name__, param.name),
            stage.getOrDefault(param) if stage.hasDefault(param) else None,
        )
        if key in VALUES:
            found[param.name] = VALUES[key]
        elif param.typeConverter is TypeConverters.toBoolean or isinstance(default, bool):
            found[param.name] = (True, False)
        elif param.typeConverter is TypeConverters.toString and not param.name.endswith(("Col", "Cols")):
            words = re.sub(r"\([^()]*\)", "", param.doc)
            told = re.search(r"(?:[Ss]upported(?: options| values)?|[Oo]ptions are):? ([^.]*)", words)
            if told is not None:
                found[param.name] = tuple(t for t in re.findall(r"[\w|-]+", told[1]) if t not in ("or", "and"))
    return found


# Drawing --------------------------------------------------------------------------------------------------------------


class Unavailable(Exception):
    """Nothing to read for a stage."""


@dataclass
class Draw:
    """Chance, and the columns that the stages so far give.

    Attributes:
        linked: whether the next column that is drawn is the one that was written last.
    """

    random: np.random.Generator
    columns: dict[str, str] = field(default_factory=dict)
    frame: Any = None
    forced: dict[str, Any] = field(default_factory=dict)
    uid: str = ""
    step: int = 0
    linked: bool = False

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def one(self, values: Sequence[Any]) -> Any:
        return values[int(self.random.integers(len(values)))]

    def some(self, values: Sequence[Any], least: int, most: int) -> list[Any]:
        number = min(len(values), int(self.random.integers(least, most + 1)))
        return [values[i] for i in self.random.permutation(len(values))[:number]]

    def known(self, *kinds: str) -> list[str]:
        return [name for name, kind in self.columns.items() if kind in kinds]

    def column(self, *kinds: str) -> str:
        """A column of one of these kinds; often one that a stage has written."""
        known = self.known(*kinds)
        made = [name for name in known if name not in SOURCES]
        if not known:
            raise Unavailable(f"no {kinds}")
        if self.linked and made:
            self.linked = False
            return made[-1]
        return str(self.one(made[-3:] if made and self.chance(0.65) else known))

    def new(self, name: str = "") -> str:
        return f"{name or 'o'}{self.step}"

    def output(self) -> tuple[dict[str, Any], str]:
        """The Param outputCol and the column's name; unset in some, which then have their default."""
        return ({}, f"{self.uid}__output") if self.chance(0.2) else ({"outputCol": self.new()}, self.new())

    def width(self, column: str) -> int:
        """Entries of a vector."""
        known = width_in(fields_by_name(self.frame.schema, str)[column])
        return int(known) if known is not None else self.frame.select(column).head()[0].size

    def weights(self, n: int) -> list[float]:
        return [round(float(x), 2) for x in self.random.normal(size=n)]


Drawn = tuple[dict[str, Any], dict[str, str]]
"""A stage's Params, and the kinds of the columns that it writes."""
Recipe = Callable[[Draw, dict[str, Any]], Drawn]


def unary(*kinds: str, to: str = "vector", **more: Callable[[Draw, str], Any]) -> Recipe:
    """A stage with inputCol and outputCol, and Params that depend on the input."""

    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        column = d.column(*kinds)
        output, name = d.output()
        given = {param: value for param, draw in more.items() if (value := draw(d, column)) is not None}
        return {"inputCol": column, **output, **given}, {name: to}

    return recipe


def either(single: Recipe, *kinds: str, to: str) -> Recipe:
    """One column by inputCol, or several by inputCols."""

    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        if d.chance(0.5):
            return single(d, want)
        columns = list(dict.fromkeys(d.column(*kinds) for _ in range(2)))
        outputs = [f"{d.new()}_{i}" for i in range(len(columns))]
        return {"inputCols": columns, "outputCols": outputs}, dict.fromkeys(outputs, to)

    return recipe


def binarizer(d: Draw, want: dict[str, Any]) -> Drawn:
    params, made = either(unary("double", "vector", to="index"), "double", "index", to="index")(d, want)
    if "inputCols" in params:
        return {**params, "thresholds": d.weights(len(params["inputCols"]))}, made
    kind = "vector" if d.columns[params["inputCol"]] == "vector" else "index"
    return {**params, "threshold": d.weights(1)[0]}, dict.fromkeys(made, kind)


def bucketizer(d: Draw, want: dict[str, Any]) -> Drawn:
    params, made = either(unary(*NUMBERS, to="index"), *NUMBERS, to="index")(d, want)
    edges = [[-inf, *sorted({-0.5, 0.0, *d.weights(1)}), inf], [-1.0, 0.0, 1.0, 100.0]]
    if "inputCols" in params:
        return {**params, "splitsArray": [d.one(edges) for _ in params["inputCols"]]}, made
    return {**params, "splits": d.one(edges)}, made


def imputer(d: Draw, want: dict[str, Any]) -> Drawn:
    columns = list(dict.fromkeys(d.column(*NUMBERS, "decimal") for _ in range(2)))
    missing = {"missingValue": d.one([7.0, 0.0])} if d.chance(0.3) else {}
    outputs = [name if d.chance(0.3) else f"{d.new()}_{i}" for i, name in enumerate(columns)]
    kinds = {out: d.columns[name] for name, out in zip(columns, outputs, strict=True)}
    if len(columns) == 1 and d.chance(0.5):
        return {"inputCol": columns[0], "outputCol": outputs[0], **missing}, kinds
    return {"inputCols": columns, "outputCols": outputs, **missing}, kinds


def one_hot(d: Draw, want: dict[str, Any]) -> Drawn:
    return either(unary("index"), "index", to="vector")(d, want)


def string_indexer(d: Draw, want: dict[str, Any]) -> Drawn:
    return either(
        unary("category", "string", "index", "int", "decimal", to="index"), "category", "index", "bigint", to="index"
    )(d, want)


def target_encoder(d: Draw, want: dict[str, Any]) -> Drawn:
    params, made = either(unary("index", to="double"), "index", to="double")(d, want)
    kind = want.setdefault("targetType", d.one(["binary", "continuous"]))
    return {**params, "labelCol": "label" if kind == "binary" else "target", "smoothing": d.one([0.0, 1.5])}, made


def assembler(d: Draw, want: dict[str, Any]) -> Drawn:
    made = [name for name in d.known(*NUMBERS, *VECTORS) if name not in SOURCES]
    every = d.known("double", "index", "float", "int", "boolean", "decimal", *VECTORS)
    last = made[-1:] if d.linked else []
    columns = list(dict.fromkeys([*last, *d.some(made, 0, 2), *d.some(every, 1, 3)]))
    want.setdefault("handleInvalid", d.one(["keep", "keep", "error", "skip"]))
    output, name = d.output()
    return {"inputCols": columns, **output}, {name: "vector"}


def interaction(d: Draw, want: dict[str, Any]) -> Drawn:
    """Of two numbers, or of a number and a vector whose entries have attributes, as those of the data have not."""
    vectors = [c for c in d.known("vector", "counts") if "attrs" in d.frame.schema[c].metadata.get("ml_attr", {})]
    columns = d.some(d.known("double", "index", "boolean", "int"), 2, 2)
    columns = d.some([columns[0], d.one(vectors)], 2, 2) if vectors and d.chance(0.8) else columns
    name = d.new()  # without a name of its own Spark refuses it
    return {"inputCols": columns, "outputCol": name}, {name: "vector"}


def feature_hasher(d: Draw, want: dict[str, Any]) -> Drawn:
    columns = d.some(d.known("double", "category", "boolean", "int", "string", "index"), 1, 3)
    categories = [name for name in columns if d.columns[name] in ("int", "index")]
    output, name = d.output()
    hashed = {"categoricalCols": categories} if categories and d.chance(0.5) else {}
    return {"inputCols": columns, "numFeatures": 16, **hashed, **output}, {name: "vector"}


def formula(d: Draw, want: dict[str, Any]) -> Drawn:
    numbers = d.some(d.known("double", "int", "vector", "boolean"), 1, 2)
    terms = [*numbers, *(["kind"] if d.chance(0.8) else [])]
    terms += [f"{numbers[0]}:kind"] if d.chance(0.3) else []
    label = d.one(["label", "target"])
    text = f"{label} ~ {' + '.join(terms)}"
    return {"formula": text, "featuresCol": d.new("features"), "labelCol": d.new("made")}, {d.new("features"): "vector"}


def sql(d: Draw, want: dict[str, Any]) -> Drawn:
    column, name = d.column("double"), d.new()
    others = ", ".join(f"`{x}`" for x in d.frame.columns if x != column)
    statement = d.one(
        [
            f"SELECT *, `{column}` * 2 + 1 AS {name} FROM __THIS__",
            f"SELECT *, abs(`{column}`) AS {name} FROM __THIS__",
            f"SELECT {others}, -`{column}` AS `{column}`, 1.0D AS {name} FROM __THIS__",
            f"SELECT *, 0.5D AS {name} FROM __THIS__ WHERE `{column}` IS NULL OR `{column}` > -1.5",
        ]
    )
    return {"statement": statement}, {name: "double"}


def own(d: Draw, want: dict[str, Any]) -> Drawn:
    output, name = d.output()
    return {"inputCol": d.column("double"), **output}, {name: "double"}


def slicer(d: Draw, want: dict[str, Any]) -> Drawn:
    column = d.column(*VECTORS)
    width = d.width(column)
    output, name = d.output()
    return {"inputCol": column, "indices": d.some(range(width), 1, 3), **output}, {name: d.columns[column]}


def selector(fits: Callable[[Draw, dict[str, Any]], dict[str, Any]]) -> Recipe:
    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        output, name = d.output()
        return {"featuresCol": d.column(*VECTORS), **output, **fits(d, want)}, {name: "vector"}

    return recipe


def univariate(d: Draw, want: dict[str, Any]) -> dict[str, Any]:
    features = want.setdefault("featureType", d.one(["categorical", "continuous"]))
    label = want.setdefault("labelType", d.one(["categorical", "continuous"]))
    if (features, label) == ("categorical", "continuous"):  # which Spark has no test for
        features = want["featureType"] = "continuous" if "labelType" in d.forced else "categorical"
        label = want["labelType"] = features
    # Those of `chi2` are the values of counts; others have too many.
    mode = want.setdefault("selectionMode", d.one(["numTopFeatures", "percentile", "fpr"]))
    threshold = {"numTopFeatures": 2.0, "percentile": 0.8}.get(mode, 1.0)
    counts = {"featuresCol": "counts"} if features == "categorical" else {}
    return {"labelCol": "grade" if label == "categorical" else "target", "selectionThreshold": threshold, **counts}


def chi_square(d: Draw, want: dict[str, Any]) -> dict[str, Any]:
    free = {"numTopFeatures": 2, "percentile": 0.8, "fpr": 1.0, "fdr": 1.0, "fwe": 1.0}
    return {"labelCol": "grade", "featuresCol": "counts", **free}


def predictor(
    label: str,
    fits: Callable[[Draw, dict[str, Any], str], dict[str, Any]] | None = None,
    probability: bool = False,
    features: Sequence[str] = VECTORS,
    leaf: bool = False,
) -> Recipe:
    """A model with a prediction."""

    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        column = d.column(*features)
        given = fits(d, want, column) if fits is not None else {}
        names = {"predictionCol": d.new("prediction")}
        if probability:
            names |= {"probabilityCol": d.new("probability")}
            names |= {"rawPredictionCol": d.new("raw")}
        names |= {"leafCol": d.new("leaf")} if leaf and d.chance(0.4) else {}
        kinds = {name: "vector" for param, name in names.items() if param != "predictionCol"}
        kinds |= {names["predictionCol"]: "index" if label in ("label", "grade") else "double"}
        return {"featuresCol": column, "labelCol": label, **names, **given}, kinds

    return recipe


def of_classes(base: dict[str, Any], leaf: bool = False, raw_only: bool = False) -> Recipe:
    """A classifier; of three classes or two."""

    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        label = "grade" if not raw_only and d.chance(0.4) else "label"
        params, kinds = predictor(label, probability=True, leaf=leaf)(d, want)
        if raw_only:
            kinds.pop(params.pop("probabilityCol"))
        elif d.chance(0.25):
            params["thresholds"] = [0.3, 0.5] if label == "label" else [0.2, 0.5, 0.3]
        return {**params, **base}, kinds

    return recipe


def logistic(d: Draw, want: dict[str, Any]) -> Drawn:
    family = want.setdefault("family", "auto")
    label = "label" if family == "binomial" or d.chance(0.5) else "grade"
    params, kinds = predictor(label, probability=True)(d, want)
    more = {"threshold": 0.4} if label == "label" and family != "multinomial" and d.chance(0.3) else {}
    penalty = {"regParam": 0.1, "elasticNetParam": d.one([0.0, 1.0])} if d.chance(0.3) else {}
    return {**params, **more, **penalty, "maxIter": 2}, kinds


def naive_bayes(d: Draw, want: dict[str, Any]) -> Drawn:
    kind = want.setdefault("modelType", d.one(["multinomial", "gaussian"]))
    params, kinds = predictor(d.one(["label", "grade"]), probability=True, features=["counts"])(d, want)
    if kind == "gaussian":
        params["featuresCol"] = d.column("vector")
    return params, kinds


def perceptron(d: Draw, want: dict[str, Any]) -> Drawn:
    label = d.one(["label", "grade"])
    params, kinds = predictor(label, probability=True)(d, want)
    layers = [d.width(params["featuresCol"]), 2, 2 if label == "label" else 3]
    return {**params, "layers": layers, "maxIter": 2, "seed": 1}, kinds


def one_vs_rest(d: Draw, want: dict[str, Any]) -> Drawn:
    params, kinds = predictor("grade")(d, want)
    which: Any = d.one([c.LogisticRegression, c.LinearSVC, c.DecisionTreeClassifier, c.MultilayerPerceptronClassifier])
    given: dict[str, Any] = {"maxDepth": 2} if which is c.DecisionTreeClassifier else {"maxIter": 2}
    if which is c.MultilayerPerceptronClassifier:
        given |= {"layers": [d.width(params["featuresCol"]), 2], "seed": 1}
    raw = d.new("raw")
    each = Stage(which, f"{d.uid}_each", {**given, "rawPredictionCol": raw})  # under another name Spark doesn't find it
    return {**params, "classifier": each, "rawPredictionCol": raw}, kinds | {raw: "vector"}


def linear_regression(d: Draw, want: dict[str, Any], column: str) -> dict[str, Any]:
    if want.get("loss") == "huber":
        if want.get("solver") != "normal":
            return {"maxIter": 2, "regParam": 0.1}
        want |= {"loss": "squaredError"} if "solver" in d.forced else {"solver": "l-bfgs"}
        return {"maxIter": 2, "regParam": 0.1}
    return {"maxIter": 2, "regParam": d.one([0.0, 0.1]), "elasticNetParam": d.one([0.0, 0.5])}


LINKS = {
    "gaussian": ("identity", "log", "inverse"),
    "binomial": ("logit", "probit", "cloglog"),
    "poisson": ("log", "identity", "sqrt"),
    "gamma": ("inverse", "identity", "log"),
    "tweedie": (),
}


def generalized(d: Draw, want: dict[str, Any]) -> Drawn:
    able = [name for name, links in LINKS.items() if want.get("link") in (None, *links)]
    if "link" in want and want.get("family", "") not in able and "family" in d.forced:
        del want["link"]
    elif want.get("family") not in able:
        want["family"] = d.one(able)
    family = want["family"]
    params, kinds = predictor("label" if family == "binomial" else "target")(d, want)
    kinds = dict.fromkeys(kinds, "double")
    eta = {"linkPredictionCol": d.new("eta")} if d.chance(0.5) else {}
    power = {"variancePower": 1.5, "linkPower": d.one([0.0, 0.5])} if family == "tweedie" else {}
    offset = {"offsetCol": "weight"} if d.chance(0.2) else {}
    return {**params, **eta, **power, **offset, "maxIter": 2, "regParam": 0.1}, kinds | dict.fromkeys(
        eta.values(), "double"
    )


def survival(d: Draw, want: dict[str, Any], column: str) -> dict[str, Any]:
    more = {"quantilesCol": d.new("quantiles"), "quantileProbabilities": [1e-12, 0.2, 0.7]} if d.chance(0.5) else {}
    return {"censorCol": "censor", "maxIter": 2, **more}


def isotonic(d: Draw, want: dict[str, Any]) -> Drawn:
    params, kinds = predictor("target", features=["double", "vector"])(d, want)
    vector = d.columns[params["featuresCol"]] == "vector"
    return {**params, **({"featureIndex": 0} if vector else {})}, kinds


def clusters(probability: bool) -> Recipe:
    def recipe(d: Draw, want: dict[str, Any]) -> Drawn:
        names = {"predictionCol": d.new("cluster")}
        names |= {"probabilityCol": d.new("probability")} if probability else {}
        kinds = {name: "vector" if param == "probabilityCol" else "int" for param, name in names.items()}
        return {"featuresCol": d.column(*VECTORS), "k": 2, "maxIter": 2, "seed": 1, **names}, kinds

    return recipe


def recommendation(d: Draw, want: dict[str, Any]) -> Drawn:
    fixed = {"userCol": "user", "itemCol": "item", "ratingCol": "target", "rank": 2, "maxIter": 1, "seed": 1}
    return {**fixed, "numUserBlocks": 1, "numItemBlocks": 1, "predictionCol": d.new("prediction")}, {
        d.new("prediction"): "float"
    }


def constant(value: Any) -> Callable[[Draw, str], Any]:
    return lambda d, column: value


def chosen(*values: Any) -> Callable[[Draw, str], Any]:
    return lambda d, column: d.one(values)


def scaling(d: Draw, column: str) -> Any:
    return Vectors.dense([d.one([1.0, -2.0, 0.0, 0.5]) for _ in range(d.width(column))])


TREE = {"maxDepth": 2, "seed": 1}
RECIPES: dict[type, Recipe] = {
    f.Binarizer: binarizer,
    f.Bucketizer: bucketizer,
    f.ChiSqSelector: selector(chi_square),
    f.CountVectorizer: unary("words", minTF=chosen(None, 2.0, 0.4), vocabSize=chosen(None, 3)),
    f.DCT: unary("vector"),
    f.ElementwiseProduct: unary(*VECTORS, scalingVec=scaling),
    f.FeatureHasher: feature_hasher,
    f.HashingTF: unary("words", numFeatures=constant(16)),
    f.IDF: unary(*VECTORS, minDocFreq=chosen(None, 3)),
    f.Imputer: imputer,
    f.IndexToString: unary(
        "index", to="string", labels=chosen(["no", "yes", "maybe", "other"], ["no", "yes", "maybe"])
    ),
    f.Interaction: interaction,
    f.MaxAbsScaler: unary(*VECTORS),
    f.MinMaxScaler: unary(*VECTORS, min=chosen(None, -1.0)),
    f.NGram: unary("words", to="words", n=chosen(1, 2)),
    f.Normalizer: unary(*VECTORS, p=chosen(1.0, 2.0, 3.0, inf)),
    f.OneHotEncoder: one_hot,
    f.PCA: unary("vector", k=constant(1)),
    f.PolynomialExpansion: unary(*VECTORS, degree=chosen(2, 3)),
    f.RFormula: formula,
    f.RegexTokenizer: unary("string", to="words", pattern=chosen(None, r"[a-z]+", ","), minTokenLength=chosen(None, 2)),
    f.RobustScaler: unary(*VECTORS, lower=chosen(None, 0.1)),
    f.SQLTransformer: sql,
    f.StandardScaler: unary(*VECTORS),
    f.StopWordsRemover: unary("words", to="words", stopWords=chosen(None, ["cat", "A"])),
    f.StringIndexer: string_indexer,
    f.Tokenizer: unary("string", to="words"),
    f.UnivariateFeatureSelector: selector(univariate),
    f.VarianceThresholdSelector: selector(lambda d, want: {"varianceThreshold": d.one([0.0, 0.1])}),
    f.VectorAssembler: assembler,
    f.VectorIndexer: unary(*VECTORS, maxCategories=chosen(3, 5)),
    f.VectorSizeHint: lambda d, want: ({"inputCol": (x := d.column(*VECTORS)), "size": d.width(x)}, {}),
    f.VectorSlicer: slicer,
    f.Word2Vec: unary("words", vectorSize=constant(2), minCount=constant(1), maxIter=constant(1), seed=constant(1)),
    c.DecisionTreeClassifier: of_classes(TREE, leaf=True),
    c.FMClassifier: predictor("label", lambda d, want, x: {"factorSize": 2, "maxIter": 2, "seed": 1}, probability=True),
    c.GBTClassifier: predictor("label", lambda d, want, x: {"maxIter": 2, **TREE}, probability=True, leaf=True),
    c.LinearSVC: of_classes({"maxIter": 2}, raw_only=True),
    c.LogisticRegression: logistic,
    c.MultilayerPerceptronClassifier: perceptron,
    c.NaiveBayes: naive_bayes,
    c.OneVsRest: one_vs_rest,
    c.RandomForestClassifier: of_classes({"numTrees": 2, **TREE}, leaf=True),
    r.AFTSurvivalRegression: predictor("target", survival),
    r.DecisionTreeRegressor: predictor("target", lambda d, want, x: TREE, leaf=True),
    r.FMRegressor: predictor("target", lambda d, want, x: {"factorSize": 2, "maxIter": 2, "seed": 1}),
    r.GBTRegressor: predictor("target", lambda d, want, x: {"maxIter": 2, **TREE}, leaf=True),
    r.GeneralizedLinearRegression: generalized,
    r.IsotonicRegression: isotonic,
    r.LinearRegression: predictor("target", linear_regression),
    r.RandomForestRegressor: predictor("target", lambda d, want, x: {"numTrees": 2, **TREE}, leaf=True),
    k.GaussianMixture: clusters(probability=True),
    k.KMeans: clusters(probability=False),
    ALS: recommendation,
    **dict.fromkeys(OWN, own),
}
if hasattr(f, "TargetEncoder"):  # since Spark 4
    RECIPES[f.TargetEncoder] = target_encoder
PREDICTORS = [kind for kind in RECIPES if kind.__module__ != "pyspark.ml.feature" and kind not in OWN]
OTHERS = [kind for kind in RECIPES if kind not in PREDICTORS]
USUAL = [
    f.VectorAssembler,
    f.StringIndexer,
    f.OneHotEncoder,
    f.StandardScaler,
    f.Imputer,
    f.VectorIndexer,
    f.Normalizer,
]
"""Drawn more often."""

SCALERS = [f.StandardScaler, f.MinMaxScaler, f.MaxAbsScaler, f.RobustScaler, f.ElementwiseProduct]
LINEAR = [r.LinearRegression, r.GeneralizedLinearRegression, c.LogisticRegression, c.LinearSVC]
CHAINS: list[tuple[Sequence[type], ...]] = [
    (SCALERS, [f.VectorAssembler], LINEAR),
    ([f.VectorAssembler], SCALERS, LINEAR),
    ([f.VectorAssembler], [f.VectorIndexer], PREDICTORS),
    ([f.StringIndexer], [f.OneHotEncoder], [f.VectorAssembler], PREDICTORS),
    ([f.Imputer], OWN, [f.VectorAssembler], PREDICTORS),
]
"""Stages as people put them together, each of which reads what the one before it writes: one of each list."""

Item = tuple[type, str, Any]
"""What a pipeline must have: a class, and where the Param is named, its value."""
AT_ONCE = 200


def switches() -> dict[type, dict[str, tuple[Any, ...]]]:
    """Per class its boolean and enumerated Params and their values; needs a session."""
    return {kind: {} if kind in OWN else values_of(kind()) for kind in RECIPES}


def needed_items(known: dict[type, dict[str, tuple[Any, ...]]]) -> list[Item]:
    """What pipelines must have, in a shuffled order that is always the same."""
    every: list[Item] = [
        (kind, name, value) for kind, params in known.items() for name, values in params.items() for value in values
    ]
    every += [(kind, "", None) for kind, params in known.items() if not params]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def needed_of(seed: int, items: Sequence[Item]) -> list[Item]:
    """What this pipeline must have: any 200 in a row have all."""
    return list(items[seed % AT_ONCE :: AT_ONCE])


# A table and rows -----------------------------------------------------------------------------------------------------


def vector(d: Draw, values: Sequence[float], form: str) -> Vector:
    form = d.one(["dense", "sparse"]) if form == "mixed" else form
    if form == "dense":
        return Vectors.dense(values)
    return Vectors.sparse(len(values), [(i, v) for i, v in enumerate(values) if v != 0 or np.signbit(v)])


def row_of(d: Draw, i: int, forms: dict[str, str]) -> dict[str, Any]:
    """A usual row."""
    random = d.random
    a, b, x = (round(float(v), 3) for v in random.normal(size=3))
    sparse = [round(float(v), 2) if random.random() < 0.6 else 0.0 for v in random.normal(size=3)]
    sparse[i % 3] = sparse[i % 3] or 1.5
    few = [float(v) for v in (random.random(4) < 0.5)]
    few[i % 4] = 1.0
    return {
        "a": a,
        "b": b,
        "x": float(np.float32(x)),
        "n": i % 5,
        "big": int(random.integers(-3, 4)),
        "flag": bool(i % 2),
        "price": Decimal(int(random.integers(0, 4000))) / 100,
        "constant": 7.0,
        "index": float(i % 3),
        "code": float(i % 2),
        "kind": "abc"[i % 3],
        "text": TEXTS[i % len(TEXTS)],
        "words": TEXTS[(i + 1) % len(TEXTS)].split(),
        "v": vector(d, sparse, forms["v"]),
        "w": vector(d, [float(1 + i % 3), a, 0.0 if i % 2 else b], forms["w"]),
        "counts": vector(d, few, forms["counts"]),
        "user": i % 4,
        "item": i % 3,
        "label": float(a + 0.3 * b > 0),
        "grade": float(i % 3),
        "target": round(abs(a) + abs(b) + 0.1, 3),
        "censor": float(i % 4 > 0),
        "weight": float(1 + i % 2),
    }


def odd_value(d: Draw, name: str, usual: Any, form: str) -> Any:
    """A value at the edge of what a column may hold."""
    kind, holds = SOURCES[name], KINDS.get(name)
    if kind == "vector":
        values = [float(v) for v in usual.toArray()]
        at = int(d.random.integers(len(values)))
        values[at] = d.one([nan, inf, -inf, -0.0, 0.0, 5.0])
        return vector(d, [0.0] * len(values) if d.chance(0.15) else values, form)
    if kind in ("double", "float"):
        return d.one(
            [None, nan, 7.0, -1.0, 1.5, inf, -0.0] if holds == "index" else [None, nan, inf, -inf, -0.0, 0.0, 1e6]
        )
    if kind == "words":
        return d.one([None, [], ["unseen"], ["cat", "CAT", ""]])
    if kind == "string":
        return d.one([None, "unseen", "", "A", "Straße  Σ"])
    return d.one([None, {"boolean": True, "decimal": Decimal("-99.99")}.get(kind, 99)])


def edges_in(case: Case, rows: Sequence[dict[str, Any]], seen: dict[str, set[Any]]) -> set[str]:
    """Which edges these rows have in the columns that stages read.

    Args:
        seen: per column the values that the table has.
    """
    found = set()
    for name in case.read():
        values = [row[name] for row in rows]
        vectors = [value for value in values if isinstance(value, Vector)]
        sparse = [isinstance(v, SparseVector) for v in vectors]
        found |= {"sparse vector"} if any(sparse) else set()
        found |= {"dense vector"} if not all(sparse) else set()
        found |= {"mixed batch"} if any(sparse) and not all(sparse) else set()
        found |= {"null"} if None in values else set()
        numbers = [float(x) for v in vectors for x in v.toArray()]
        numbers += [v for v in values if isinstance(v, float)]
        found |= {"NaN"} if any(np.isnan(numbers)) else set()
        found |= {"+inf"} if inf in numbers else set()
        found |= {"-inf"} if -inf in numbers else set()
        found |= {"-0.0"} if any(x == 0 and np.signbit(x) for x in numbers) else set()
        if KINDS.get(name) in ("index", "category", "id"):
            found |= {"unseen category"} if {v for v in values if v is not None and v == v} - seen[name] else set()
    return found


# A pipeline -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A drawn pipeline, fitted.

    Attributes:
        again: how many stages were drawn again, because Spark could not fit them.
    """

    case: Case
    stages: list[Any]
    again: int
    drawn: int
    missing: list[Item]


def language_of(seed: int, known: dict[type, dict[str, tuple[Any, ...]]]) -> str:
    """The JVM's language for the pipeline of a number: Turkish, which has lower cases of its own, for one in ten, and for those
    that must have a stage that lowers text.
    """
    lowers = any(item[0] in (f.Tokenizer, f.RegexTokenizer) for item in needed_of(seed, needed_items(known)))
    return "tr" if lowers or np.random.default_rng([22, seed]).random() < 1 / 10 else "en"


@contextmanager
def speaking(spark: SparkSession, language: str) -> Iterator[None]:
    """The JVM has this language for so long."""
    locale = spark._jvm.java.util.Locale  # type: ignore[union-attr]
    before = locale.getDefault()
    locale.setDefault(locale.forLanguageTag(language))
    try:
        yield
    finally:
        locale.setDefault(before)


def drawn(spark: SparkSession, seed: int, known: dict[type, dict[str, tuple[Any, ...]]], errors: Any) -> Made:
    """The pipeline of a number, fitted; one in six on rows that hold odd values, unless a stage that it must have can't be.

    Args:
        errors: what Spark raises.
    """
    if np.random.default_rng([21, seed]).random() < 1 / 6:
        made = _drawn(spark, seed, known, errors, odd=True)
        if not made.missing:
            return made
    return _drawn(spark, seed, known, errors, odd=False)


def _drawn(
    spark: SparkSession, seed: int, known: dict[type, dict[str, tuple[Any, ...]]], errors: Any, odd: bool
) -> Made:
    d = Draw(np.random.default_rng([20, seed]))
    forms = {name: d.one(["dense", "sparse", "mixed", "mixed"]) for name in ("v", "w", "counts")}
    train = [{"id": i, **row_of(d, i, forms)} for i in range(30)]
    for row in train[::7] if odd else []:
        for name in d.some(list(SOURCES), 1, 4):
            row[name] = odd_value(d, name, row[name], forms.get(name, ""))
    types = {"id": "bigint", **SOURCES, **LABELS}
    case = Case((), train, [], types, language_of(seed, known))
    d.columns = {name: KINDS.get(name, kind) for name, kind in SOURCES.items()}
    d.frame = case.frame(spark, train)
    must = needed_of(seed, needed_items(known))
    plan = [(item[0], {item[1]: item[2]} if item[1] else {}) for item in must]
    for kind, _ in list(plan):
        if kind in OTHERS and d.chance(0.5):
            plan.append((d.one(PREDICTORS), {}))
    chain = [d.one(kinds) for kinds in d.one(CHAINS)] if d.chance(0.5) else []
    more = 0 if chain else max(0, int(d.random.integers(1, 6)) - len(plan))
    plan += [(d.one(USUAL) if d.chance(0.4) else d.one(OTHERS), {}) for _ in range(more)]
    if not chain and not any(kind in PREDICTORS for kind, _ in plan) and d.chance(0.85):
        plan.append((d.one(PREDICTORS), {}))
    order = d.random.permutation(len(plan))
    plan = sorted((plan[i] for i in order), key=lambda p: p[0] in PREDICTORS)
    first_of_chain = sum(kind not in PREDICTORS for kind, _ in plan)
    plan[first_of_chain:first_of_chain] = [(kind, {}) for kind in chain]
    links = range(first_of_chain + 1, first_of_chain + len(chain))
    stages, fitted, again, number, missing = [], [], 0, 0, []
    for d.step, (first, want) in enumerate(plan):
        kind = first
        for _ in range(6):
            number += 1
            d.linked = d.step in links
            try:
                stage, made, frame, kinds = _fitted(d, kind, dict(want), known)
            except (*errors, Unavailable):
                again += 1
                kind = first if want else d.one(PREDICTORS if first in PREDICTORS else OTHERS)
                continue
            stages.append(stage)
            fitted.append(made)
            d.frame, d.columns = frame, d.columns | kinds
            break
        else:
            missing += [item for item in must if item[0] is first]
    case = replace(case, stages=tuple(stages))
    kept = {"id", *case.read(), *d.some(list(SOURCES), 1, 3)}  # all others make every plan longer
    case = replace(case, types={name: kind for name, kind in types.items() if name in kept})
    reads = [name for name in case.read() if name in SOURCES]
    rows = []
    for i in range(20):
        row = {"id": i, **row_of(d, i + 1, forms)}
        for name in d.some(reads, 1, 2) if i >= 7 else []:
            row[name] = odd_value(d, name, row[name], forms.get(name, ""))
        rows.append(row)
    return Made(replace(case, rows=rows), fitted, again, number, missing)


def _fitted(
    d: Draw, kind: type, want: dict[str, Any], known: dict[type, dict[str, tuple[Any, ...]]]
) -> tuple[Any, ...]:
    d.uid = f"{kind.__name__[0].lower()}{kind.__name__[1:]}{d.step}"
    forced = d.forced = dict(want)
    for name, values in known[kind].items():
        if name not in want and d.chance(0.2):
            want[name] = d.one(values)
    params, kinds = RECIPES[kind](d, want)
    if any(want.get(name) != value for name, value in forced.items()):
        raise AssertionError(f"{kind.__name__} does not take {forced}")
    stage = Stage(kind, d.uid, {**params, **want})
    made = stage.made()
    made = made.fit(d.frame) if hasattr(made, "fit") else made
    return stage, made, made.transform(d.frame), kinds


# Code -----------------------------------------------------------------------------------------------------------------


def type_code(kind: str) -> str:
    return {"words": "ArrayType(StringType())", "decimal": "DecimalType(8, 2)"}.get(
        kind, f"{type(TYPES[kind]).__name__}()"
    )


def row_code(rows: Sequence[dict[str, Any]], types: dict[str, str]) -> Iterator[str]:
    for row in rows:
        yield f"    ({', '.join(value_code(row[name]) for name in types)},),"


def value_code(value: Any) -> str:
    if isinstance(value, SparseVector):
        return f"Vectors.sparse({value.size}, {value.indices.tolist()}, {value.values.tolist()})"
    if isinstance(value, DenseVector):
        return f"Vectors.dense({value.toArray().tolist()})"
    return repr(value)

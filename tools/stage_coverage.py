"""Writes docs/stages.md: what becomes of each class of MLlib that can stand in a fitted pipeline.

    python tools/stage_coverage.py          # writes the file
    python tools/stage_coverage.py --check  # exit code 1 where the file isn't what this would write

Every class is fitted or made once, on a few rows, and its plan and its module are asked; only what others translate is typed.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pyspark.ml import Model, Pipeline, Transformer, classification as c, clustering as k, feature as f, regression as r
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.fpm import FPGrowth
from pyspark.ml.linalg import Vectors
from pyspark.ml.recommendation import ALS
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.stages.base import REGISTRY, SKIPS, UNTRANSLATED, StageModule, class_name

PAGE = Path(__file__).parents[1] / "docs" / "stages.md"
MODULES = ("feature", "classification", "regression", "clustering", "recommendation", "fpm", "pipeline", "tuning")
VECTOR: dict[str, Any] = {"inputCol": "features", "outputCol": "o"}
TEXT: dict[str, Any] = {"inputCol": "words", "outputCol": "o"}

OTHERS = {"H": "Hummingbird", "O": "onnxmltools", "M": "MLeap", "P": "JPMML-SparkML"}
MARKS = {"*": "wrong in corner cases", "†": "restricted", "‡": "its link is ignored"}
THEIRS = {
    name: marks
    for marks, names in {
        "H O M P": "VectorAssembler LogisticRegressionModel PipelineModel",
        "H O† M P": "Bucketizer",
        "O M P": "VectorSlicer VectorIndexerModel ChiSqSelectorModel MaxAbsScalerModel PCAModel Binarizer ImputerModel "
        "StringIndexerModel IndexToString Tokenizer StopWordsRemover MultilayerPerceptronClassificationModel "
        "DecisionTreeClassificationModel RandomForestClassificationModel GBTClassificationModel LinearRegressionModel "
        "DecisionTreeRegressionModel RandomForestRegressionModel GBTRegressionModel KMeansModel",
        "O* M P": "StandardScalerModel MinMaxScalerModel",
        "O† M P": "OneHotEncoderModel CountVectorizerModel NaiveBayesModel",
        "O‡ M P": "GeneralizedLinearRegressionModel",
        "O M": "ElementwiseProduct PolynomialExpansion DCT Word2VecModel BucketedRandomProjectionLSHModel MinHashLSHModel "
        "OneVsRestModel AFTSurvivalRegressionModel",
        "O† M": "Normalizer",
        "O P": "LinearSVCModel",
        "M P": "Interaction IDFModel RegexTokenizer NGram CrossValidatorModel TrainValidationSplitModel",
        "M": "HashingTF FeatureHasher IsotonicRegressionModel BisectingKMeansModel GaussianMixtureModel LocalLDAModel ALSModel",
        "P": "VectorSizeHint SQLTransformer RFormulaModel FPGrowthModel",
    }.items()
    for name in names.split()
}
"""What each of them translates, for inference only."""


def classes() -> list[type]:
    """Every class of pyspark.ml that can stand in a fitted pipeline, module by module."""
    found = []
    for name in MODULES:
        module = importlib.import_module(f"pyspark.ml.{name}")
        found += [
            t
            for t in vars(module).values()
            if inspect.isclass(t) and issubclass(t, Transformer) and t.__module__ == module.__name__
        ]
    concrete = [t for t in found if not inspect.isabstract(t) and not t.__name__.startswith("_")]
    return [t for t in concrete if not any(t is not other and issubclass(other, t) for other in concrete)]


# One of each ------------------------------------------------------------------------------------------------------------


def rows(spark: SparkSession) -> DataFrame:
    """Rows that every stage can be fitted on."""
    data = [
        (
            Vectors.dense(i % 2, 1.0 + i % 3, i),
            float(i % 2),
            1.0 + i,
            float(i % 3),
            "abc"[i % 3],
            list("abc")[: 1 + i % 3],
            i % 4,
            i % 3,
            1.0,
        )
        for i in range(12)
    ]
    names = ["features", "label", "target", "number", "text", "words", "user", "item", "censor"]
    return spark.createDataFrame(data, names).coalesce(1).cache()


def stages() -> dict[str, Callable[[], Any]]:
    """Per class an estimator of it, or an object of it; with the settings under which most of it trains."""
    target: dict[str, Any] = {"labelCol": "target", "maxIter": 1}
    tree: dict[str, Any] = {"maxDepth": 2, "seed": 1}
    linear = r.LinearRegression(labelCol="target")
    search: dict[str, Any] = {
        "estimator": linear,
        "estimatorParamMaps": ParamGridBuilder().addGrid(linear.regParam, [0.1]).build(),
        "evaluator": RegressionEvaluator(labelCol="target"),
        "seed": 1,
    }
    of: dict[str, Callable[[], Any]] = {
        "Binarizer": lambda: f.Binarizer(inputCol="number", outputCol="o"),
        "BucketedRandomProjectionLSHModel": lambda: f.BucketedRandomProjectionLSH(bucketLength=1.0, seed=1, **VECTOR),
        "Bucketizer": lambda: f.Bucketizer(splits=[0.0, 1.0, 9.0], inputCol="number", outputCol="o"),
        "ChiSqSelectorModel": lambda: f.ChiSqSelector(numTopFeatures=2, outputCol="o"),
        "CountVectorizerModel": lambda: f.CountVectorizer(**TEXT),
        "DCT": lambda: f.DCT(**VECTOR),
        "ElementwiseProduct": lambda: f.ElementwiseProduct(scalingVec=Vectors.dense(1, 2, 3), **VECTOR),
        "FeatureHasher": lambda: f.FeatureHasher(inputCols=["text", "number"], outputCol="o", numFeatures=8),
        "HashingTF": lambda: f.HashingTF(numFeatures=8, **TEXT),
        "IDFModel": lambda: f.IDF(**VECTOR),
        "ImputerModel": lambda: f.Imputer(inputCol="number", outputCol="o"),
        "IndexToString": lambda: f.IndexToString(inputCol="label", outputCol="o", labels=["no", "yes"]),
        "Interaction": lambda: f.Interaction(inputCols=["number", "features"], outputCol="o"),
        "MaxAbsScalerModel": lambda: f.MaxAbsScaler(**VECTOR),
        "MinHashLSHModel": lambda: f.MinHashLSH(seed=1, **VECTOR),
        "MinMaxScalerModel": lambda: f.MinMaxScaler(**VECTOR),
        "NGram": lambda: f.NGram(**TEXT),
        "Normalizer": lambda: f.Normalizer(**VECTOR),
        "OneHotEncoderModel": lambda: f.OneHotEncoder(inputCol="number", outputCol="o"),
        "PCAModel": lambda: f.PCA(k=2, **VECTOR),
        "PolynomialExpansion": lambda: f.PolynomialExpansion(**VECTOR),
        "RFormulaModel": lambda: f.RFormula(formula="target ~ number + text", featuresCol="o", labelCol="y"),
        "RegexTokenizer": lambda: f.RegexTokenizer(inputCol="text", outputCol="o"),
        "RobustScalerModel": lambda: f.RobustScaler(withCentering=True, **VECTOR),
        "SQLTransformer": lambda: f.SQLTransformer(statement="SELECT *, number + 1 AS o FROM __THIS__"),
        "StandardScalerModel": lambda: f.StandardScaler(withMean=True, **VECTOR),
        "StopWordsRemover": lambda: f.StopWordsRemover(**TEXT),
        "StringIndexerModel": lambda: f.StringIndexer(inputCol="text", outputCol="o"),
        "Tokenizer": lambda: f.Tokenizer(inputCol="text", outputCol="o"),
        "UnivariateFeatureSelectorModel": lambda: (
            f.UnivariateFeatureSelector(outputCol="o")
            .setFeatureType("continuous")
            .setLabelType("categorical")
            .setSelectionThreshold(2)
        ),
        "VarianceThresholdSelectorModel": lambda: f.VarianceThresholdSelector(outputCol="o"),
        "VectorAssembler": lambda: f.VectorAssembler(inputCols=["number", "features"], outputCol="o"),
        "VectorIndexerModel": lambda: f.VectorIndexer(**VECTOR),
        "VectorSizeHint": lambda: f.VectorSizeHint(size=3, inputCol="features"),
        "VectorSlicer": lambda: f.VectorSlicer(indices=[2, 0], **VECTOR),
        "Word2VecModel": lambda: f.Word2Vec(vectorSize=2, minCount=1, maxIter=1, seed=1, **TEXT),
        "DecisionTreeClassificationModel": lambda: c.DecisionTreeClassifier(**tree),
        "FMClassificationModel": lambda: c.FMClassifier(maxIter=1, seed=1),
        "GBTClassificationModel": lambda: c.GBTClassifier(maxIter=2, **tree),
        "LinearSVCModel": lambda: c.LinearSVC(maxIter=1),
        "LogisticRegressionModel": lambda: c.LogisticRegression(maxIter=1),
        "MultilayerPerceptronClassificationModel": lambda: c.MultilayerPerceptronClassifier(
            maxIter=1, layers=[3, 2], seed=1
        ),
        "NaiveBayesModel": lambda: c.NaiveBayes(modelType="gaussian"),
        "OneVsRestModel": lambda: c.OneVsRest(classifier=c.LogisticRegression(maxIter=1), labelCol="number"),
        "RandomForestClassificationModel": lambda: c.RandomForestClassifier(numTrees=2, **tree),
        "AFTSurvivalRegressionModel": lambda: r.AFTSurvivalRegression(**target),
        "DecisionTreeRegressionModel": lambda: r.DecisionTreeRegressor(labelCol="target", **tree),
        "FMRegressionModel": lambda: r.FMRegressor(seed=1, **target),
        "GBTRegressionModel": lambda: r.GBTRegressor(**target, **tree),
        "GeneralizedLinearRegressionModel": lambda: r.GeneralizedLinearRegression(family="poisson", **target),
        "IsotonicRegressionModel": lambda: r.IsotonicRegression(labelCol="target", featureIndex=2),
        "LinearRegressionModel": lambda: r.LinearRegression(loss="huber", **target),
        "RandomForestRegressionModel": lambda: r.RandomForestRegressor(labelCol="target", numTrees=2, **tree),
        "BisectingKMeansModel": lambda: k.BisectingKMeans(k=2, maxIter=1, seed=1),
        "DistributedLDAModel": lambda: k.LDA(k=2, maxIter=1, seed=1, optimizer="em"),
        "GaussianMixtureModel": lambda: k.GaussianMixture(k=2, maxIter=1, seed=1),
        "KMeansModel": lambda: k.KMeans(k=2, maxIter=1, seed=1),
        "LocalLDAModel": lambda: k.LDA(k=2, maxIter=1, seed=1),
        "ALSModel": lambda: ALS(ratingCol="target", rank=2, maxIter=1, seed=1),
        "FPGrowthModel": lambda: FPGrowth(itemsCol="words"),
        "PipelineModel": lambda: Pipeline(stages=[linear]),
        "CrossValidatorModel": lambda: CrossValidator(numFolds=2, **search),
        "TrainValidationSplitModel": lambda: TrainValidationSplit(**search),
    }
    if hasattr(f, "TargetEncoder"):  # from Spark 4 on
        of["TargetEncoderModel"] = lambda: f.TargetEncoder(
            inputCols=["number"], outputCols=["o"], targetType="continuous", labelCol="target"
        )
    return of


def one_of(name: str, df: DataFrame) -> Any:
    """A fitted stage of this class."""
    made = stages()[name]()
    return made if isinstance(made, Transformer) and not isinstance(made, Model) else made.fit(df)


# The table --------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What becomes of a class."""

    name: str
    role: str  # translated, referenced, wrapper
    trains: tuple[str, ...]
    on_request: tuple[str, ...]
    settings: tuple[str, ...]  # with which it stays in Spark
    why: str


def row(name: str, df: DataFrame) -> Row:
    stage = one_of(name, df)
    leaves = flatten(stage)
    if leaves[0][1] is not stage:
        return Row(
            name,
            "wrapper",
            (),
            (),
            (),
            f"replaced by the stages in it: {', '.join(type(s).__name__ for _, s in leaves)}",
        )
    [planned] = sparkdiff.plan(stage, schema=df.schema).stages
    if planned.role == "referenced":
        known = UNTRANSLATED.get(class_name(stage))  # whatever the example does
        return Row(name, "referenced", (), (), (), planned.reason if known is None else known.reason)
    kind = REGISTRY[class_name(stage)]
    module = kind.from_spark(stage)
    names = [(n.rpartition(".")[2], p) for n, p in module.named_parameters()]
    return Row(
        name,
        "translated",
        unique(n for n, p in names if p.requires_grad and n not in module.optional),
        unique(module.on_request()),
        settings(kind, stage),
        "",
    )


def unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def settings(kind: type[StageModule], stage: Any) -> tuple[str, ...]:
    """The settings with which a stage of this class stays in Spark."""
    skips = stage.hasParam("handleInvalid") and "skip" in stage.getParam("handleInvalid").doc
    if skips:
        assert kind.refuses(stage.copy({stage.getParam("handleInvalid"): "skip"})) == SKIPS, stage
    return (*(["handleInvalid='skip'"] if skips else []), *kind.refusals)


def page(df: DataFrame) -> str:
    """docs/stages.md"""
    found = [row(t.__name__, df) for t in classes()]
    of = {role: [x for x in found if x.role == role] for role in ("translated", "referenced", "wrapper")}
    lines = ["# Every stage of Spark ML", "", WRITTEN_BY, "", *summary(found, of), ""]
    for title, role, columns, shown in TABLES:
        head = [*columns, "also in"]
        lines += [f"## {title}", "", cells(*head), cells(*["---"] * len(head))]
        lines += [*(cells(*shown(x), THEIRS.get(x.name, "")) for x in of[role]), ""]
    return "\n".join([*lines, LAST, ""])


WRITTEN_BY = "<!-- generated by tools/stage_coverage.py; a test compares this page with its output -->"
LAST = "Other stages stay in Spark unless you register [a translation](own_stages.md)."
TABLES: list[tuple[str, str, tuple[str, ...], Callable[[Row], tuple[str, ...]]]] = [
    (
        "Translated to torch",
        "translated",
        ("class", "trains", "on request", "stays in Spark with"),
        lambda x: (x.name, listed(x.trains), listed(x.on_request), ", ".join(x.settings)),
    ),
    ("In Spark", "referenced", ("class", "why"), lambda x: (x.name, x.why)),
    ("Stages that contain stages", "wrapper", ("class", "treatment"), lambda x: (x.name, x.why)),
]


def summary(found: list[Row], of: dict[str, list[Row]]) -> list[str]:
    translated, referenced, wrappers = (of[role] for role in ("translated", "referenced", "wrapper"))
    train, request = [x for x in translated if x.trains], [x for x in translated if not x.trains and x.on_request]
    bound = [x for x in translated if x.settings]
    count = {letter: sum(letter in THEIRS.get(x.name, "") for x in found) for letter in OTHERS}
    theirs = ", ".join(f"{name} (**{letter}**) {count[letter]}" for letter, name in OTHERS.items())
    marks = ", ".join(f"{mark} {what}" for mark, what in MARKS.items())
    return [
        f"A fitted pipeline can contain {len(found)} classes of MLlib. {len(translated)} are translated to torch: {len(train)} "
        f"train, {len(request)} more on request (`unfreeze`), and {len(translated) - len(train) - len(request)} have "
        f"nothing to train. {len(referenced)} stay in Spark and do not change. {len(wrappers)} contain other stages.",
        "",
        f"{sum(len(x.settings) for x in bound)} settings of {len(bound)} classes keep a stage in Spark; "
        "the [plan](plan.md) gives the reason.",
        "",
        f'"Also in" names other converters, for inference only: {theirs}; {marks}.',
    ]


def cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def main() -> int:
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config(
        "spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1"
    )
    text = page(rows(builder.getOrCreate()))
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The cost table: microseconds of one core per row for serving a stage, by the stage's class and size.

`benchmarks/serving_costs.py` measured the figures with Spark's own `transform`. Limits on serving costs are checked against this
table rather than against a measurement, so that decisions are the same on every machine and under any load. The real time of a
pipeline can only be measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.jvm.encoders import category_maps
from sparkdiff.pipeline.nesting import flatten

Steps = Sequence[tuple[str, float]]
"""A sequence of stages, each as (class, number of entries as counted in `COSTS`)."""
Filled = Mapping[str, float]
"""Name of a vector column -> number of nonzero entries per row."""
Entries = Callable[[Any, Filled], float]
NOTHING: Filled = {}
WORDS = 20.0
"""Assumed number of words of a text, because no stage knows the real number."""

COSTS: Mapping[str, tuple[float, float]] = {
    "VectorAssembler": (1.65, 0.11),
    "VectorSizeHint": (0.13, 0.0),
    "Interaction": (3.01, 0.11),
    "ElementwiseProduct": (0.96, 0.007),
    "StandardScalerModel": (0.91, 0.0033),
    "MinMaxScalerModel": (0.92, 0.013),
    "MaxAbsScalerModel": (0.89, 0.0035),
    "RobustScalerModel": (0.86, 0.0045),
    "StringIndexerModel": (0.02, 0.26),
    "OneHotEncoderModel": (0.07, 0.9),
    "TargetEncoderModel": (0.07, 0.11),
    "Bucketizer": (0.0, 0.095),
    "Binarizer": (0.04, 0.022),
    "ImputerModel": (0.05, 0.0025),
    "FeatureHasher": (4.2, 0.52),
    "IndexToString": (0.56, 0.0),
    "VectorAttributeRewriter": (0.0, 0.0),
    "ColumnPruner": (0.0, 0.0),
    "FormulaLabel": (0.02, 0.0),
    "Normalizer": (0.78, 0.0072),
    "DCT": (1.51, 0.03),
    "PolynomialExpansion": (0.91, 0.021),
    "IDFModel": (0.67, 0.011),
    "VectorIndexerModel": (0.52, 0.098),
    "VectorSlicer": (0.72, 0.036),
    "ChiSqSelectorModel": (0.67, 0.035),
    "UnivariateFeatureSelectorModel": (0.61, 0.047),
    "VarianceThresholdSelectorModel": (0.61, 0.045),
    "Tokenizer": (0.91, 0.27),
    "RegexTokenizer": (1.03, 0.35),
    "StopWordsRemover": (1.53, 0.32),
    "NGram": (1.38, 0.9),
    "HashingTF": (0.0, 1.9),
    "CountVectorizerModel": (1.38, 0.88),
    "Word2VecModel": (2.01, 0.0036),
    "MinHashLSHModel": (3.25, 0.074),
    "BucketedRandomProjectionLSHModel": (3.72, 0.011),
    "IsotonicRegressionModel": (0.03, 0.0071),
    "PCAModel": (1.6, 0.0095),
    "LinearRegressionModel": (0.38, 0.015),
    "GeneralizedLinearRegressionModel": (0.48, 0.013),
    "AFTSurvivalRegressionModel": (0.49, 0.012),
    "FMRegressionModel": (0.54, 0.13),
    "LogisticRegressionModel": (1.44, 0.012),
    "LinearSVCModel": (2.52, 0.016),
    "FMClassificationModel": (3.39, 0.11),
    "NaiveBayesModel": (2.38, 0.026),
    "OneVsRestModel": (0.0, 27.0),
    "MultilayerPerceptronClassificationModel": (1.9, 0.00098),
    "GaussianMixtureModel": (5.08, 0.0094),
    "KMeansModel": (2.77, 0.0013),
    "BisectingKMeansModel": (2.7, 0.0022),
    "LocalLDAModel": (0.0, 2.3),
    "DistributedLDAModel": (0.0, 2.3),
    "DecisionTreeRegressionModel": (0.16, 0.035),
    "DecisionTreeClassificationModel": (0.16, 0.035),
    "RandomForestRegressionModel": (1.29, 0.019),
    "RandomForestClassificationModel": (1.29, 0.019),
    "GBTRegressionModel": (0.43, 0.018),
    "GBTClassificationModel": (0.43, 0.018),
}
"""Class of the fitted stage -> (fixed cost, cost per entry) in microseconds per row. Meaning of an entry, by class:

- VectorAssembler: an assembled number, or a nonzero entry of an assembled vector;
- Interaction: a nonzero product;
- VectorSizeHint, MinMaxScalerModel, scalers that centre: an entry of the vector;
- other scalers, ElementwiseProduct, Normalizer, DCT, IDFModel: a nonzero entry;
- StringIndexerModel, OneHotEncoderModel, TargetEncoderModel, Bucketizer, ImputerModel, FeatureHasher: a column;
- Binarizer: a column, or a nonzero entry of its vector;
- VectorIndexerModel: a categorical feature;
- VectorSlicer, selectors: a selected entry;
- PolynomialExpansion: a term;
- Tokenizer, RegexTokenizer, StopWordsRemover, NGram, HashingTF, CountVectorizerModel: a word;
- Word2VecModel: an entry of a word's vector;
- MinHashLSHModel, BucketedRandomProjectionLSHModel: a nonzero entry, for each hash table;
- IsotonicRegressionModel: a step of the search among n boundaries, log2(n) of them;
- PCAModel, linear and logistic models, NaiveBayesModel: a coefficient of a nonzero entry;
- FMRegressionModel, FMClassificationModel: a factor of a nonzero entry;
- OneVsRestModel: a model, in addition to the model's own cost; measured for pyspark's, which sends rows to Python for each model;
- MultilayerPerceptronClassificationModel: a weight;
- GaussianMixtureModel: an entry of a covariance;
- KMeansModel, BisectingKMeansModel: a nonzero entry, for each centre that a row is compared with;
- LocalLDAModel, DistributedLDAModel: a topic of a word, and 12 more for each word. The local model was measured; the
  distributed one makes a local one;
- trees: a node on the path of a row, log2(nodes + 1) in a tree that is about balanced. Regression trees were measured;
  classification trees count the same.

The figures were measured on two machines. The second machine took 1.4 times as long (median of 21 classes measured on both), so
the figures of the classes that were measured only there are divided by 1.4.
"""
DEFAULT = (2.0, 0.0)
"""Costs of a class that isn't in the table (see `unknown`): about those of reading one vector and writing another one."""


def of(kind: str, entries: float) -> float:
    """Microseconds per row of a stage of this class (see `kind_of`), with entries counted as in `COSTS`."""
    fixed, each = COSTS.get(kind, DEFAULT)
    return fixed + each * entries


def kind_of(stage: Any) -> str:
    """Class name of a stage, as in `COSTS`; with its module for other libraries, where the same name may mean another class."""
    kind = type(stage)
    own = kind.__module__.startswith(("pyspark.ml.", "sparkdiff."))
    return kind.__name__ if own else f"{kind.__module__}.{kind.__name__}"


def of_steps(steps: Steps) -> float:
    """Microseconds per row of a sequence of stages."""
    return sum(of(kind, entries) for kind, entries in steps)


def of_stage(stage: Any, filled: Filled = NOTHING) -> float:
    """Microseconds per row of a fitted stage and of the models inside it; 0 if it only drops or moves columns.

    Args:
        filled: see `entries_of`.
    """
    if jvm.selection_of(stage) is not None:
        return 0.0
    return of(kind_of(stage), entries_of(stage, filled)) + sum(of_stage(model, filled) for model in models_of(stage))


def unknown(model: Any) -> list[str]:
    """A warning that names the stages of a fitted pipeline whose costs are not known; empty if all costs are."""
    names = ", ".join(f"{type(stage).__name__} {stage.uid}" for _, stage in flatten(model) if not _is_known(stage))
    return (
        [
            f"serving costs of {names} are not known: each counts as {DEFAULT[0]:g} us per row, whatever it does, for "
            "maxServingCost and what is offered as cheap or simpler; where that matters, time both pipelines on your rows"
        ]
        if names
        else []
    )


def _is_known(stage: Any) -> bool:
    """True if the costs of a stage and of the models inside it are known; also if the stage only drops or moves columns."""
    known = kind_of(stage) in COSTS or jvm.selection_of(stage) is not None
    return known and all(map(_is_known, models_of(stage)))


def models_of(stage: Any) -> Sequence[Any]:
    """Models that a OneVsRestModel applies; empty for other stages."""
    return stage.models if kind_of(stage) == "OneVsRestModel" else ()


def of_model(model: Any, filled: Filled = NOTHING) -> float:
    """Microseconds per row of all leaf stages of a fitted pipeline.

    Args:
        filled: nonzero entries per row of vector columns, by column; used where the stages don't determine them.

    Raises:
        InputError: a stage is not fitted; the message names it.
    """
    known, total = dict(filled), 0.0
    for _, stage in flatten(model):
        total += of_stage(stage, known)
        known |= filled_by(stage, known)
    return total


def filled_by_model(model: Any) -> dict[str, float]:
    """Nonzero entries per row of the vector columns that a fitted pipeline writes, by column, where its stages determine them."""
    known: dict[str, float] = {}
    for _, stage in flatten(model):
        known |= filled_by(stage, known)
    return known


def entries_of(stage: Any, filled: Filled = NOTHING) -> float:
    """Number of entries of a fitted stage, as `COSTS` counts them; 0 for a class that isn't in the table.

    Args:
        filled: nonzero entries per row, by column. For a column that is missing here, the function assumes `WORDS` entries if
            the stage reads words or vectors of words (for LDA, at most the vocabulary), one entry if the stage doesn't know the
            size of its vectors, and else a full vector.
    """
    read = ENTRIES.get(kind_of(stage))
    return float(read(stage, filled)) if read is not None else 0.0


def filled_by(stage: Any, filled: Filled) -> dict[str, float]:
    """Nonzero entries per row of vector columns that a fitted stage writes, by column; not for all columns and classes."""
    match kind_of(stage):
        case "OneHotEncoderModel":
            return dict.fromkeys(stage.getOutputCols() if stage.isSet("outputCols") else [stage.getOutputCol()], 1.0)
        case "MultilayerPerceptronClassificationModel":
            return {stage.getRawPredictionCol(): float(stage.getLayers()[-1])}
        case "PCAModel":
            return {stage.getOutputCol(): float(stage.pc.numCols)}
        case "VectorSizeHint":
            return {stage.getInputCol(): filled.get(stage.getInputCol(), float(stage.getSize()))}
        case "Word2VecModel":
            return {stage.getOutputCol(): float(stage.getVectorSize())}
        case kind if kind in SAME_SHAPE:
            return {stage.getOutputCol(): entries_of(stage, filled)}
    return {}


def lookups(trees: int, nodes: int) -> float:
    """Number of nodes on a row's paths through `trees` balanced trees, which have `nodes` nodes in all."""
    return trees * math.log2(nodes / trees + 1)


def steps_among(boundaries: int) -> float:
    """Number of steps of a binary search among the boundaries of an IsotonicRegressionModel."""
    return math.log2(max(boundaries, 2))


def _input_counter(size: Callable[[Any], float], column: str = "inputCol") -> Entries:
    """Function that counts the vector entries, or words, that a stage reads; `size` gives the number for an unknown column."""
    return lambda stage, filled: filled.get(stage.getOrDefault(column), float(size(stage)))


def _selection_counter(size: Callable[[Any], int], column: str) -> Entries:
    """Function that counts the entries that a stage selects from the vector in `column`: at most `size`."""
    read = _input_counter(size, column)
    return lambda stage, filled: min(read(stage, filled), size(stage))


def _terms(stage: Any, filled: Filled) -> float:
    """Number of terms of a PolynomialExpansion, without the constant."""
    return math.comb(round(_numbers(stage, filled)) + stage.getDegree(), stage.getDegree()) - 1.0


def _topics(stage: Any, filled: Filled) -> float:
    """Number of entries of an LDA model: for each word, the number of topics and 12 more."""
    return (stage.getK() + 12) * _counts(stage, filled)


def centres_among(clusters: int) -> float:
    """Number of centres with which a BisectingKMeansModel compares a row: two per level of a balanced tree."""
    return 2 * math.log2(max(clusters, 2))


def _columns(stage: Any, _filled: Filled) -> int:
    return len(stage.getInputCols()) if stage.isSet("inputCols") else 1


def _scaling_counter(size: Callable[[Any], int], centres: str = "") -> Entries:
    """Function that counts the entries that a scaler changes: the nonzero ones, or all if its Param named `centres` is True."""
    read = _input_counter(size)
    return lambda stage, filled: size(stage) if centres and stage.getOrDefault(centres) else read(stage, filled)


def _tree(stage: Any, _filled: Filled) -> float:
    return lookups(1, stage.numNodes)


def _ensemble(stage: Any, _filled: Filled) -> float:
    return lookups(stage.getNumTrees, stage.totalNumNodes)


_words = _input_counter(lambda _stage: WORDS)
_numbers = _input_counter(lambda _stage: 1)
_counts = _input_counter(lambda stage: min(WORDS, stage.vocabSize()), "featuresCol")
_coefficients = _input_counter(lambda stage: stage.numFeatures, "featuresCol")
_centre = _input_counter(lambda stage: stage.clusterCenters()[0].size, "featuresCol")
_selected = _selection_counter(lambda stage: len(stage.selectedFeatures), "featuresCol")

ENTRIES: Mapping[str, Entries] = {
    "VectorAssembler": lambda stage, filled: sum(filled.get(column, 1.0) for column in stage.getInputCols()),
    "Interaction": lambda stage, filled: math.prod(filled.get(column, 1.0) for column in stage.getInputCols()),
    "VectorSizeHint": lambda stage, _filled: stage.getSize(),
    "ElementwiseProduct": _scaling_counter(lambda stage: stage.getScalingVec().size),
    "StandardScalerModel": _scaling_counter(lambda stage: stage.std.size, "withMean"),
    "MinMaxScalerModel": lambda stage, _filled: stage.originalMin.size,
    "MaxAbsScalerModel": _scaling_counter(lambda stage: stage.maxAbs.size),
    "RobustScalerModel": _scaling_counter(lambda stage: stage.range.size, "withCentering"),
    "StringIndexerModel": _columns,
    "OneHotEncoderModel": _columns,
    "TargetEncoderModel": _columns,
    "Bucketizer": _columns,
    "Binarizer": lambda stage, filled: _columns(stage, filled) if stage.isSet("inputCols") else _numbers(stage, filled),
    "ImputerModel": _columns,
    "FeatureHasher": _columns,
    "IndexToString": lambda _stage, _filled: 1,
    "VectorAttributeRewriter": lambda _stage, _filled: 1,
    "ColumnPruner": lambda _stage, _filled: 1,
    "FormulaLabel": lambda _stage, _filled: 1,
    "Normalizer": _numbers,
    "DCT": _numbers,
    "PolynomialExpansion": _terms,
    "IDFModel": _scaling_counter(lambda stage: stage.idf.size),
    "VectorIndexerModel": lambda stage, _filled: len(category_maps(stage)),
    "VectorSlicer": _selection_counter(lambda stage: len(stage.getIndices()) + len(stage.getNames()), "inputCol"),
    "ChiSqSelectorModel": _selected,
    "UnivariateFeatureSelectorModel": _selected,
    "VarianceThresholdSelectorModel": _selected,
    "Tokenizer": _words,
    "RegexTokenizer": _words,
    "StopWordsRemover": _words,
    "NGram": _words,
    "HashingTF": _words,
    "CountVectorizerModel": _words,
    "Word2VecModel": lambda stage, filled: stage.getVectorSize() * _words(stage, filled),
    "MinHashLSHModel": lambda stage, filled: stage.getNumHashTables() * _words(stage, filled),
    "BucketedRandomProjectionLSHModel": lambda stage, filled: stage.getNumHashTables() * _numbers(stage, filled),
    "IsotonicRegressionModel": lambda stage, _filled: steps_among(stage.boundaries.size),
    "PCAModel": lambda stage, filled: filled.get(stage.getInputCol(), float(stage.pc.numRows)) * stage.pc.numCols,
    "LinearRegressionModel": _coefficients,
    "GeneralizedLinearRegressionModel": _coefficients,
    "AFTSurvivalRegressionModel": _coefficients,
    "LinearSVCModel": _coefficients,
    "FMRegressionModel": lambda stage, filled: stage.getFactorSize() * _coefficients(stage, filled),
    "FMClassificationModel": lambda stage, filled: stage.getFactorSize() * _coefficients(stage, filled),
    "NaiveBayesModel": lambda stage, filled: stage.numClasses * _coefficients(stage, filled),
    "OneVsRestModel": lambda stage, _filled: len(stage.models),
    "LogisticRegressionModel": lambda stage, filled: stage.coefficientMatrix.numRows * _coefficients(stage, filled),
    "MultilayerPerceptronClassificationModel": lambda stage, _filled: stage.weights.size,
    "GaussianMixtureModel": lambda stage, _filled: len(stage.weights) * stage.gaussiansDF.first()["mean"].size ** 2,
    "KMeansModel": lambda stage, filled: len(stage.clusterCenters()) * _centre(stage, filled),
    "BisectingKMeansModel": lambda stage, filled: centres_among(len(stage.clusterCenters())) * _centre(stage, filled),
    "LocalLDAModel": _topics,
    "DistributedLDAModel": _topics,
    "DecisionTreeRegressionModel": _tree,
    "DecisionTreeClassificationModel": _tree,
    "RandomForestRegressionModel": _ensemble,
    "RandomForestClassificationModel": _ensemble,
    "GBTRegressionModel": _ensemble,
    "GBTClassificationModel": _ensemble,
}
SAME_SHAPE = frozenset(
    {
        "VectorAssembler",
        "Interaction",
        "ElementwiseProduct",
        "StandardScalerModel",
        "MinMaxScalerModel",
        "MaxAbsScalerModel",
        "RobustScalerModel",
        "Normalizer",
        "DCT",
        "PolynomialExpansion",
        "IDFModel",
        "VectorSlicer",
        "ChiSqSelectorModel",
        "UnivariateFeatureSelectorModel",
        "VarianceThresholdSelectorModel",
        "HashingTF",
        "CountVectorizerModel",
        "FeatureHasher",
    }
)
"""Classes that write at most as many nonzero entries as `entries_of` counts."""

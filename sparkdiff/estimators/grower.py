"""Grower, a pyspark.ml Estimator that adds stages to a fitted pipeline (growth), and GrowerModel, the Model that it
returns.
"""

from sparkdiff.estimators.fine_tuner import ExtendedTuner, FineTunerModel
from sparkdiff.estimators.option_params import with_params
from sparkdiff.estimators.option_types import GrowerGetters, GrowerMembers
from sparkdiff.growth.growth_options import FIELDS, GrowthSettings
from sparkdiff.growth.growth_steps import describe_growth
from sparkdiff.growth.growth_summary import GrowthSummary
from sparkdiff.improvement.by_folds import grow_pipeline


@with_params(FIELDS, setters=True)
class Grower(GrowerMembers, ExtendedTuner):
    """An Estimator that adds plain MLlib stages to a fitted Spark ML pipeline that ends in a linear stage.

    The new stages express effects that the pipeline's form cannot. Parts, i.e. groups of new stages, of several kinds
    (hidden units, crosses of columns, curves, effects of entities, boosted trees) are trained in rounds, and the best
    part of each round is added. In the end all stages train together, and parts that are not needed are dropped. As in
    FineTuner, the grown pipeline is returned only if it is better on held-out rows.

    Args:
        pipeline: a fitted PipelineModel, or an unfitted Pipeline, which is fitted on the training rows first. It must
            end in LinearRegression, GeneralizedLinearRegression or LogisticRegression.
        referenceData: see `FineTuner`.
        callbacks: see `FineTuner`.
        **params: see `sparkdiff.growth.growth_options.GrowthSettings` and `sparkdiff.options.Options`, or
            `Grower().explainParams()`.

    `fit(df)` returns a `GrowerModel` whose `pipelineModel` is plain Spark ML: the original stages, with their uids and
    Params, new MLlib stages among them, and the last linear stage, which now reads the new columns, too (by another
    featuresCol).

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; the message names all of them.

    Examples:
        >>> import sparkdiff
        >>> grower = sparkdiff.Grower(pipeline=pipeline, labelCol="label", parts=["shapes"], rounds=1, numFolds=0, maxEpochs=3)
        >>> grown = grower.fit(df)
        >>> grown.summary.decision  # print(grown.summary) shows the parts that were tried
        'grown'
        >>> [part["kind"] for part in grown.summary.parts]
        ['shapes']
        >>> grown.pipelineModel.write().overwrite().save(f"{folder}/churn-grown")  # plain Spark ML
    """

    __module__ = "sparkdiff"

    SETTINGS = GrowthSettings
    DESCRIBE = staticmethod(describe_growth)
    PROCEDURE = staticmethod(grow_pipeline)


@with_params(FIELDS)
class GrowerModel(FineTunerModel, GrowerGetters):
    """The result of growing a pipeline, with the members of `FineTunerModel` and the Params of the Grower.

    Attributes:
        pipelineModel: the grown pipeline, plain Spark ML; the original object itself if the original was kept.
        originalModel: the pipeline that was grown.
        summary: a `GrowthSummary`: metrics before and after, decision, rounds, parts.
    """

    __module__ = "sparkdiff"

    SETTINGS = GrowthSettings
    SUMMARY = GrowthSummary


Grower.MODEL = GrowerModel

"""Options as a type checker sees them: `make lint` checks this file, which nothing runs. An ignored error that is none is one."""

from pyspark.ml import PipelineModel
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame

from sparkdiff import FineTuner, FineTunerModel, Grower, GrowerModel, Improver, ImproverModel, Search


def right(model: PipelineModel, df: DataFrame) -> None:
    tuner = FineTuner(model, labelCol="y", learningRate=0.01, freeze=["pca"], referenceData=df)
    tuner.setMaxEpochs(5).setSeed(1).setPipeline(model)
    FineTuner(model, freeze="pca", reference={"pca"}, target=model.stages[0], localMode=True, tags={"version": 1})
    epochs: int = tuner.getMaxEpochs()
    label: str | None = tuner.getLabelCol()
    ParamGridBuilder().addGrid(tuner.maxEpochs, [epochs]).addGrid(tuner.labelCol, [label])
    tuned: FineTunerModel = tuner.fit(df)
    tuned.getGuardCols().append("hour")
    grower = Grower(model, labelCol="y", rounds=2, entityCols=["user"]).copy().setRounds(3).setLabelCol("z")
    grown: GrowerModel = grower.fit(df)
    grown.getParts()
    improver = Improver(model, budget="60s", arms=["refit"], labelCol="y").setBudget("2h").setSeed(0)
    improved: ImproverModel = improver.fit(df)
    improved.offers["best"]
    search = Search(model, space={}, numTrials=3).setSampler("grid").setCurrent(model)
    search.getNumTrials()


def wrong(model: PipelineModel) -> None:
    FineTuner(model, learninRate=0.01)  # type: ignore[call-arg]
    FineTuner(model, learningRate="fast")  # type: ignore[arg-type]
    FineTuner(model, freeze=3)  # type: ignore[arg-type]
    FineTuner(model, rounds=3)  # type: ignore[call-arg]
    FineTuner(model).setLearninRate(0.01)  # type: ignore[attr-defined]
    FineTuner(model).setMaxEpochs("5")  # type: ignore[arg-type]
    Grower(model, round=3)  # type: ignore[call-arg]
    Grower(model).setBudget("1h")  # type: ignore[attr-defined]
    Improver(model, budgets="1h")  # type: ignore[call-arg]
    Search(model, trials=3)  # type: ignore[call-arg]

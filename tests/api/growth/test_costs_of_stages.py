"""Serving costs of fitted stages, read from the stages themselves."""

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.regression import GBTRegressor, RandomForestRegressor
from pyspark.sql import DataFrame

from sparkdiff.growth import cost_table


def test_a_pipeline_costs_what_its_stages_cost(model: PipelineModel) -> None:
    indexer, encoder, assembler, scaler, pca, glr = model.stages
    sizes = {encoder: 1, pca: pca.pc.numRows * 3, glr: 3, indexer: 1, scaler: pca.pc.numRows}
    for stage, entries in sizes.items():
        assert cost_table.entries_of(stage) == entries
    assert cost_table.entries_of(assembler) == len(assembler.getInputCols())
    assert cost_table.of_model(model) == pytest.approx(sum(map(cost_table.of_stage, model.stages)))
    assert cost_table.of_stage(pca) == cost_table.of("PCAModel", sizes[pca]) > cost_table.COSTS["PCAModel"][0]


def test_more_trees_cost_more(df: DataFrame, model: PipelineModel) -> None:
    rows = PipelineModel(model.stages[:3]).transform(df)
    features = model.stages[2].getOutputCol()
    few, many = (GBTRegressor(featuresCol=features, labelCol="riders", maxIter=n, maxDepth=3).fit(rows) for n in (1, 3))
    assert cost_table.of_stage(many) > cost_table.of_stage(few)
    forest = RandomForestRegressor(featuresCol=features, labelCol="riders", numTrees=2, maxDepth=2).fit(rows)
    assert 2 <= cost_table.entries_of(forest) <= 6


def test_an_unknown_class_costs_the_default(spark: object) -> None:
    assert cost_table.of_stage(SQLTransformer(statement="SELECT * FROM __THIS__")) == cost_table.DEFAULT[0]

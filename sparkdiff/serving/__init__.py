"""Serving of fitted pipelines: smaller pipelines, export to ONNX, scoring without Spark, and scoring with torch in
Spark.

`compact` folds stages into fewer plain MLlib stages with the same outputs: `affine_maps` has the affine maps of stages,
`absorbers` the stages that can absorb such a map, `folding_state` the readers and widths of columns, and `folding` removes
stages one by one. `deletion` finds the single stages that can be deleted from a pipeline, which changes its outputs.

`onnx_export` writes the translated stages (those with a torch module) as one ONNX file: `onnx_graph` builds a graph by
arithmetic, `onnx_stages`, `onnx_predictors` and `onnx_trees` write the nodes of each stage, and `onnx_widths`
determines the widths of the file's inputs.

`scorer` answers requests without Spark: `compiling` finds the steps that the wanted columns need, `schedule` runs them,
`few_rows` has faster steps for few rows, `requests` turns outside rows into columns (`request_values` has their types),
`result_columns` converts columns back, `text` has the stages that read or write text, `java_text` Java's text functions, and
`scorer_files` writes and reads a scorer without pickle. `torch_transformer` scores a DataFrame with torch, in Spark.
"""

__all__ = ["compact", "deletion", "onnx_export", "scorer", "torch_transformer"]

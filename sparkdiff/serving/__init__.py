"""Fitted pipelines made ready for serving.

`compact` folds stages into fewer plain MLlib stages with the same outputs: `maps` has the affine maps of stages,
`absorbers` the stages that can absorb such a map, `columns` the readers and widths of columns, and `folding` removes
stages one by one. `deletion` lists the single stages that a pipeline could do without.

`onnx_export` writes the translated stages as one ONNX file: `onnx_graph` makes nodes of arithmetic, `onnx_stages`,
`onnx_predictors` and `onnx_trees` write each stage with it, and `onnx_widths` determines the widths of its inputs.

`scorer` answers requests without Spark: `compiling` finds the steps that the wanted columns need, `schedule` runs them,
`few_rows` has faster steps for few rows, `requests` turns outside rows into columns (`request_values` has their types),
`results` converts columns back, `text` has the stages that read text, `java_text` Java's text functions, and `stored`
writes and reads a scorer without pickle. `torch_transformer` scores a DataFrame with torch, in Spark.
"""

__all__ = ["compact", "deletion", "onnx_export", "scorer", "torch_transformer"]

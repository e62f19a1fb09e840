"""Fitted pipelines made ready for serving.

`compact` folds stages into fewer plain MLlib stages with the same outputs: `maps` says what a stage does to its vector,
`absorbers` which stages can take that up, `columns` knows who reads which column and how wide it is, and `folding` takes stages
away one by one. `deletion` lists the single stages that a pipeline could do without.

`onnx_export` writes the translated stages as one ONNX file: `onnx_graph` makes nodes of arithmetic, and `onnx_stages`,
`onnx_predictors` and `onnx_trees` say each stage in it, `onnx_widths` how wide its inputs are.

`scorer` answers requests without Spark: `compiling` finds the steps that the wanted columns need, `schedule` runs them,
`requests` turns rows from outside into columns (`request_values` has their types), `results` turns columns back, `text` has the
stages that read text, `java_text` what text is to Java, and `stored` writes and reads a scorer without pickle.
`torch_transformer` scores a DataFrame by torch, in Spark.
"""

__all__ = ["compact", "deletion", "onnx_export", "scorer", "torch_transformer"]

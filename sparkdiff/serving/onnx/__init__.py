"""Export to ONNX of the stages that are translated (those with a torch module).

`export` writes the file: `graph` builds a graph by arithmetic, `stages`, `predictors` and `trees` write the nodes of each stage,
and `widths` determines the widths of the file's inputs.
"""

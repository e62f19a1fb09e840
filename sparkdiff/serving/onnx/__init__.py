"""Export to ONNX of the stages that are translated (those with a torch module).

`export` determines the widths of the file's inputs and writes the file: `graph` builds a graph by arithmetic, `stages`,
`predictors` and `trees` write the nodes of each stage.
"""

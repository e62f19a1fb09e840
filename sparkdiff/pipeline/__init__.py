"""A fitted pipeline as a graph of columns, as a plan to read, as a torch module, and back.

`graph` is the graph, made by `translation`; `roles` says what trains in it, and `cut` what Spark computes before training.
`unfitted` finds the estimators that a fitted pipeline came from, and fits them anew; `tree_origin` tells which trees Spark grew,
`class_numbers` which class has which number.
`plan` is the plan, `network` the torch module, and `write_back` makes MLlib stages of it again. `nesting` flattens pipelines
within pipelines, `schema` and `names` know the columns before a row is seen, `columns` turns Spark's columns into tensors and
back, and `parity` compares the outputs of Spark and torch. `batches` computes columns in Spark's tasks,
`null_vectors` tells encoders who refuses their null vectors.
"""

__all__ = [
    "batches",
    "class_numbers",
    "columns",
    "cut",
    "graph",
    "names",
    "nesting",
    "network",
    "null_vectors",
    "parity",
    "plan",
    "roles",
    "schema",
    "translation",
    "tree_origin",
    "unfitted",
    "write_back",
]

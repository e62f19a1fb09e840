"""A fitted pipeline as a graph of columns, as a plan to read, as a torch module, and back.

`graph` is the graph, `plan` the plan, `network` the torch module, and `write_back` makes MLlib stages of it again. `nesting`
flattens pipelines within pipelines, `schema` and `names` know the columns before a row is seen, `columns` turns Spark's
columns into tensors and back, and `parity` compares the outputs of Spark and torch.
"""

__all__ = [
    "columns",
    "graph",
    "names",
    "nesting",
    "network",
    "parity",
    "plan",
    "schema",
    "write_back",
]

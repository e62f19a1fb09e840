"""A fitted pipeline as a graph of columns, as a plan to read, as a torch module, and back.

`graph` holds the graph, made by `translation`; `roles` decides what trains in it, and `cut` the point up to which Spark
runs the stages before training. `unfitted_form` finds the estimators that a fitted pipeline came from, and fits them anew.
`plan` is the plan, `network` the torch module, and `write_back` turns it into MLlib stages again. `nesting` flattens
pipelines within pipelines, `schema` and `column_names` know the columns before a row is read, `column_tensors` turns Spark's
columns into tensors and back, and `parity` compares the outputs of Spark and torch. `indexer_labels` finds the number of each
class, and labels of numbers that the running Java prints differently. `spark_inference` computes columns in Spark's tasks.
"""

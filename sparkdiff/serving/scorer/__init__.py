"""Scoring without Spark.

`compiling` finds the steps that the wanted columns need, `schedule` runs them, `few_rows` has faster steps for few rows,
`requests` turns outside rows into columns, `scorer` has the Scorer and turns columns back into rows, `text` has the stages that
read or write text, `java_text` Java's text functions, and `scorer_files` writes and reads a scorer without pickle.
"""

"""Splits of the rows, the cache that Spark writes, and the batches that training reads from it.

`splits` says which rows are for what (Source, Boundaries), `fingerprint` which cache they need (Request), `cache`
opens it (open_cache, Cache) and writes it from the rows of `frames`, and `stream` (Stream, Batch) reads its files
without Spark. `row_hashes` numbers equal rows, `blocks` holds the number of blocks that rows are divided into,
`rehearsal` estimates what a cache would cost, and `soft_labels` turns labels of class probabilities into rows with one
label each.
"""

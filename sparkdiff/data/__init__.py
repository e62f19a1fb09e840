"""Which rows decide, the cache that Spark writes, and the batches that training reads from it.

`splits` says which rows are for what (Source, Boundaries), `fingerprint` which cache they need (Request), `cache` opens it
(open_cache, Cache) and writes it from the rows of `frames`, and `stream` (Stream, Batch) reads its files without Spark.
`row_hashes` numbers equal rows, `blocks` says into how many blocks rows are dealt, `rehearsal` what a cache would cost,
`soft_labels` which rows stand for labels of class probabilities.
"""

__all__ = ["blocks", "cache", "fingerprint", "rehearsal", "row_hashes", "soft_labels", "splits", "stream"]

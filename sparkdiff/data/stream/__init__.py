"""Batches of a cache for torch: the same batches with both readers (Arrow and Petastorm), from memory or from files, on
any number of ranks.

`batches` has them (Stream), in the order and with the shares of each rank that `order` gives; `manifest` describes the
files, `files` reads them by `arrow` or `petastorm`, `decoded_rows` keeps what exceeds memory decoded on the disk,
`device_batches` copies batches to a GPU. `usage` records the uses of a cache, and locks it while it is read.
"""

"""The number of blocks that rows are divided into."""

MAX_BLOCKS = 2048  # rows, or groups, are dealt into at most so many blocks by their hash
TIME_BLOCKS = 50  # contiguous blocks of a time series

"""The number of blocks that rows are divided into."""

MAX_BLOCKS = 2048  # upper limit for the blocks that rows, or groups, are assigned to by their hash
TIME_BLOCKS = 50  # contiguous blocks of a time series

"""Which rows decide, the cache that Spark writes, and the stream that training reads."""

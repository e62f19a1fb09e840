"""`Search`: trials over a space of Params and alternative stages, and an honest comparison of the winner with the default."""

"""`Search`: trials over a space of Params and alternative stages, and an honest test of the winner."""

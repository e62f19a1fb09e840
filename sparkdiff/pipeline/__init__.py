"""A fitted pipeline as a graph of columns, as a plan, as a torch module, and back."""

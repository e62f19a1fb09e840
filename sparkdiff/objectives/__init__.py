"""What is minimised and what is measured: losses and metrics, on tensors only."""

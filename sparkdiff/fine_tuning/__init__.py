"""Fine-tuning: the way of the data, once through."""

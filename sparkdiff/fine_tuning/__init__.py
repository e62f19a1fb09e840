"""Fine-tuning: the whole path of the data, from the rows to the tuned pipeline."""

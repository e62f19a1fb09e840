"""Many pipelines and one budget: which of them deserve a fine-tuning."""

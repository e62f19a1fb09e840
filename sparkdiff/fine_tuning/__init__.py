"""Fine-tuning from the rows to the tuned pipeline: options as Params, task, phases, procedure and summary."""

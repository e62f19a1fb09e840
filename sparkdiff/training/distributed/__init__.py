"""A training in one process or in many: `launch` starts them, `attempt` watches them, `worker` is what each of them does."""

"""A training in one process or in many: `launch` starts and watches them, `worker` is what each of them does."""

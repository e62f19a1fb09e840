"""Training in one process or in many: `launch` starts them, `attempt` watches them, `worker` is the code of each."""

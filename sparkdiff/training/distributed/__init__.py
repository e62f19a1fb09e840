"""Training in one process or in many: `launch` starts the processes, `attempt` watches them, `worker` is the code of
each.
"""

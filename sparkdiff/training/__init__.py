"""Candidates, steps and the training loop.

`preparation` gives what a training starts from, `recipes` which candidates train together, `loop` trains them (Training,
Trained), and `distributed` runs the loop in one process or in many. `monotone` is a penalty,
`resuming` says what a run that is resumed must have in common with the one that was interrupted.
"""

__all__ = ["distributed", "loop", "monotone", "preparation", "recipes", "resuming"]

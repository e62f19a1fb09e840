"""Candidates, steps and the training loop.

`preparation` gives what a training starts from, and what a run that is resumed must have in common with the one that was
interrupted; `recipes` says which candidates train together, `loop` trains them on the CPU or a GPU, `ongoing` is a training
under way (Training), `results` holds what they found (Trained), `parameters` puts them into one vector in natural units, and
`distributed` runs the loop in one process or in many. `monotone` is a penalty; `optimizers` has the steps, also for what growth
trains.
"""

__all__ = [
    "distributed",
    "loop",
    "monotone",
    "ongoing",
    "optimizers",
    "parameters",
    "preparation",
    "recipes",
    "results",
]

"""Candidates (several copies of the trainable parameters, trained side by side), their steps, and the training loop.

`preparation` computes the start of a training run, and the request that a resumed run must share with the interrupted
run; `recipes` chooses the candidates that train together, `loop` trains them on the CPU or a GPU, `training_run` has the
training in progress (`Training`), `epoch_results` its results (`TrainedNetwork`), `parameters` flattens the parameters into one
vector in natural units (typical scales of the parameters), and `distributed` runs the loop in one process or in many.
`monotone` is a penalty; `optimizers` has the optimizer steps, which growth uses, too.
"""

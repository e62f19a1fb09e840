"""Cross-fitting: fine-tuning repeated per fold, so that all rows decide, and once more on all rows for what ships.

For each fold, an unfitted pipeline is fitted on rows outside of it and fine-tuned on them; validation rows of its own,
outside of the fold too, choose the candidate and the epoch. Nothing of this has seen the rows of the fold, which then
measure both pipelines. The rows of all folds together decide (`evaluation.out_of_fold`). If they decide for the tuned
one, the pipeline that is fitted on all rows is trained on all rows: by the candidate that most folds chose, for the
median of the epochs that these folds chose.
"""

from sparkdiff.cross_fitting.procedure import cross_fit

__all__ = ["cross_fit"]

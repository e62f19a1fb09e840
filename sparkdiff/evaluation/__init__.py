"""How good a network is on rows, and whether it may replace the original.

`checks` says whether the labels allow training. `data.Data` gives rows in batches, and `recorded` keeps margins by row, so that
pipelines that read other columns can be compared; `scores.score` gives a metric on rows, `inputs` and `feature_names` facts
about the inputs; `guard` holds the gains of all candidates, `paired_rows` the rows that decide, and tests by the guard what is
gained on them, with the `units` that count; `out_of_fold` tells how far folds depend on each other, and `acceptance.judge`
decides. `slices` and `compatibility` tell what changes beside the mean; `unseen_errors` asks whether one more wrong prediction
would undo a gain, `seen_rows` whether a pipeline was fitted on these rows. `cached_parity` compares with Spark,
`single_precision` float32 with float64.
"""

__all__ = [
    "acceptance",
    "cached_parity",
    "checks",
    "compatibility",
    "data",
    "feature_names",
    "guard",
    "inputs",
    "out_of_fold",
    "paired_rows",
    "recorded",
    "scores",
    "seen_rows",
    "single_precision",
    "slices",
    "units",
    "unseen_errors",
]

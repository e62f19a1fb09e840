"""The quality of a network on rows, and the decision whether it may replace the original.

`row_checks` tests whether the labels allow training. `split_batches.Data` yields rows in batches, and `row_margins`
keeps margins by row, so that pipelines that read different columns can be compared; `scores.score` computes a metric on
rows, `input_statistics` and `feature_names` give facts about the inputs. `guard` holds the gains of all candidates on
held-out rows, and tests whether a gain is more than chance; `paired_rows` has these rows with the losses of both
pipelines, and applies the guard; `units` counts the independent units (rows, groups or blocks of time) among them.
`acceptance.judge` decides whether the tuned network replaces the original. `slices` and `compatibility` report changes
that the mean doesn't show; `unseen_errors` tests whether one more wrong prediction would undo a gain, `seen_rows`
whether a pipeline was fitted on these rows. `cached_parity` compares with Spark, and float32 with float64.

Reasons to doubt a result: `row_warnings.check` returns warnings about the data (from the figures of `row_evidence`),
`pipeline_warnings` has warnings about the tuned pipeline; `model_differences.between` compares two models, and
`prediction_differences.predictions` their predictions. `model_saving` writes a model, and checks that what was saved is
what was tested.
"""

"""Fine-tuning, from the rows to the tuned pipeline.

`task` has the data classes of a run; `fine_tuning_run` calls the `phases` in order; `thresholds` tunes a threshold in place
of weights; `fine_tuning_summary` makes the summary, and `costs` estimates a run. The way of a row:

1. `FineTuner.fit` (`estimators/fine_tuner.py`) calls `fine_tune` (`fine_tuning_run.py`) with the task of `prepare` (`task.py`),
   whose plan and cut come from `pipeline/cut.py` and `pipeline/plan.py`.
2. `open_run` (`phases.py`) has `open_cache` (`data/cache.py`) write the cache: Spark runs the stages before the cut
   (`data/frames.py`), and the rows become Parquet files (`data/layout.py`).
3. `Stream` (`data/stream/__init__.py`) reads it in batches, and `split_batches.py` (room `evaluation`) by split.
4. `verify_original` measures the original, and compares its network (`pipeline/network.py`) with Spark (`cached_parity.py`).
5. `train` starts `training/distributed/launch.py`; in each process `training/loop.py` gives the batches to a `Training`
   (`training/training_run.py`).
6. `judge_by_rows` decides by held-out rows (`evaluation/acceptance.py`, `evaluation/guard.py`).
7. `write_back_and_verify` makes Spark's stages of the weights (`pipeline/write_back.py`, `jvm/rebuilding.py`) and compares again.
"""

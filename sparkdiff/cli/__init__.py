"""The command `sparkdiff`, and jobs: from a YAML file and flags to a run folder with the plain model, the plan, the summary and
the history.

`app` has the commands, one module per topic (`jobs`, `models`, `projects`, `earlier_runs`); each imports what it needs when it
runs, so that `--help` responds at once. Of a job, `config` reads the settings, `starting` starts Spark, `steps` and `searching`
run the procedure, and `output_writing` writes the run folder. `scripts` runs a job by the flags of a command.
"""

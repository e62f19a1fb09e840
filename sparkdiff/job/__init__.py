"""A job: from a YAML file and flags to a run folder with the plain model, the plan, the summary and the history.

`config` reads the settings, `loading` loads sessions, data and models that the settings name, `starting` starts Spark,
`steps` and `searching` run the procedure, and `output_writing` writes the run folder. `scripts` runs a job by
the flags of a command, and `model_saving` writes the models of other commands to a folder.
"""

from sparkdiff.job.config import COMMANDS, Config, command_of, load_config
from sparkdiff.job.starting import run

__all__ = ["COMMANDS", "Config", "command_of", "load_config", "run"]

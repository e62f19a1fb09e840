"""An Airflow DAG (2.4 or newer): update a model each week, and go on by what was decided.

The first task runs `sparkdiff finetune --json`, whose stdout is one object of JSON, and reads it. Exit codes: 0 it ran, whatever
was decided; 1 it failed, and goes on from its last checkpoint if it is repeated; 2 the input is wrong, which no repetition heals.
"""

import json
import subprocess
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.decorators import dag, task
from airflow.exceptions import AirflowException, AirflowFailException

CONFIG = "/opt/jobs/churn.yaml"
WRONG_INPUT = 2


@dag(schedule="@weekly", start_date=datetime(2026, 1, 5, tzinfo=timezone.utc), catchup=False, max_active_runs=1)
def weekly_update() -> None:
    @task(retries=2, retry_delay=timedelta(minutes=10), execution_timeout=timedelta(hours=4))
    def finetune(week: str) -> dict[str, Any]:
        command = ["sparkdiff", "finetune", "--config", CONFIG, "--json", f"fineTuner.runId=churn-{week}"]
        command += [f"output.path=/data/runs/churn-{week}", "output.mode=overwrite"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # stderr goes to the log of the task
        if done.returncode == WRONG_INPUT:
            raise AirflowFailException("the input is wrong; see the log")
        if done.returncode != 0:
            raise AirflowException(f"exit code {done.returncode}; the next try goes on")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @task.branch
    def decide(result: dict[str, Any]) -> str:
        return "compare_with_champion" if result["accepted"] else "keep"

    @task
    def compare_with_champion(result: dict[str, Any]) -> None:
        print(f"{result['model']}: {result['reason']}")

    @task
    def keep(result: dict[str, Any]) -> None:
        print(f"nothing changes: {result['reason']}")

    result = finetune("{{ ds_nodash }}")
    decide(result) >> [compare_with_champion(result), keep(result)]


weekly_update()

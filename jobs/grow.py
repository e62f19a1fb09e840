"""For spark-submit: `spark-submit jobs/grow.py --config conf/bikeshare_grow.yaml grower.rounds=3`."""

import sys

from sparkdiff.cli.scripts import main

if __name__ == "__main__":
    sys.exit(main("grow"))

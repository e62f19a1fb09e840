"""For spark-submit: `spark-submit jobs/improve.py --config conf/bikeshare_improve.yaml improver.budget=5m`."""

import sys

from sparkdiff.cli.scripts import main

if __name__ == "__main__":
    sys.exit(main("improve"))

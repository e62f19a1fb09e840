"""For spark-submit: `spark-submit jobs/search.py --config conf/digits_search.yaml search.numTrials=50`."""

import sys

from sparkdiff.cli.scripts import main

if __name__ == "__main__":
    sys.exit(main("search"))

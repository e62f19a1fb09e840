"""For spark-submit: `spark-submit jobs/finetune.py --config conf/bikeshare.yaml fineTuner.maxEpochs=50`."""

import sys

from sparkdiff.cli.scripts import main

if __name__ == "__main__":
    sys.exit(main("finetune"))

"""One curve for every trial of a search, in a tracker: trackers.py [TRACKER [OPTION OF search run ...]]

tensorboard by default, which `pip install 'flexibert[trackers]'` brings; wandb, trackio and whatever else Accelerate
knows do the same.
"""

import sys
from pathlib import Path

from search.cli import main


tracker, *options = sys.argv[1:] or ["tensorboard"]
status = main(["run", "--name", "tracked", "--trials", "3", "--steps", "50", "--report-to", tracker, *options])
for file in sorted(Path("runs/tracked").rglob("*tfevents*")):
    print(file)  # tensorboard --logdir runs/tracked
sys.exit(status)

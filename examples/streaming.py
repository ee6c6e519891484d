"""Pretrain on a corpus that is larger than the disk: streaming.py [CORPUS [OPTION OF search pretrain ...]]

CORPUS is a data set on the Hub or files of your own. It is read while it is trained on, shuffled within a window, and
a killed run goes on with the same command, to the bit. By default a few hundred steps on English web pages.
"""

import sys
from pathlib import Path

from search.cli import main


web_pages = ["HuggingFaceFW/fineweb-edu", "--corpus-config", "sample-10BT", "--steps", "300"]
corpus, *options = sys.argv[1:] or web_pages
architecture = ["--architecture", "bert-tiny", "--output", "streamed"]
status = main(["pretrain", *architecture, "--corpus", corpus, "--streaming", *options])
if not status:
    print(Path("streamed/README.md").read_text(encoding="utf-8").partition("\n## Training\n")[2])
sys.exit(status)

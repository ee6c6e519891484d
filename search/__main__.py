"""`flexibert-search`, `python -m search`, `accelerate launch -m search` and `accelerate launch search`."""

import sys
import warnings
from pathlib import Path


if not __package__:  # started as a folder: the folder itself stands first on the path, its parent is wanted
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from search.cli import main  # noqa: E402


def command() -> int:
    """The console script."""
    # Without the file and the line of code, which tell a user nothing.
    warnings.formatwarning = lambda message, *place, **more: f"search: warning: {message}\n"
    return main()


if __name__ == "__main__":
    sys.exit(command())

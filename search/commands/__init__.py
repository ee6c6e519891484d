"""What the sub-commands do: a file for each, with a function `main`. What they share is in `common.py`."""

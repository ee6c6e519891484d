"""Uploads a checkpoint, or says what would be uploaded."""

from pathlib import Path

import transformers

from ..artifacts.hub import push


def main(options) -> None:
    """Uploads a checkpoint, or says what would be uploaded."""
    transformers.logging.disable_progress_bar()
    folder = Path(options.folder)
    if (folder / "best").is_dir() and not (folder / "config.json").exists():
        folder = folder / "best"
    print(push(folder, options.repo_id, options.private, not options.push, options.revision, options.replace))

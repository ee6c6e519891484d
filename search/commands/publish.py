"""Uploads a checkpoint, or says what would be uploaded."""

from pathlib import Path

from ..artifacts.publish import push


def main(options) -> None:
    """Uploads a checkpoint, or says what would be uploaded."""
    folder = Path(options.folder)
    if (folder / "best").is_dir() and not (folder / "config.json").exists():
        folder = folder / "best"
    print(push(folder, options.repo_id, private=options.private, dry_run=not options.push))

"""Downloads a checkpoint, and says whether it is whole."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub.utils
import transformers

from ..artifacts.hub import pull
from ..artifacts.integrity import inspect


def main(options) -> int:
    """Prints the folder of a downloaded checkpoint; with --verify also a line a question, and 1 where one is wrong."""
    transformers.logging.disable_progress_bar()
    if options.json:
        huggingface_hub.utils.disable_progress_bars()
    folder = pull(options.repo_id, options.revision, Path(options.output) if options.output else None)
    findings = inspect(folder, options.trust_remote_code) if options.verify else []
    ok = all(finding.ok is not False for finding in findings)
    if options.json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"repo_id": options.repo_id, "folder": str(folder), "ok": ok, "checks": checks}, indent=2))
    else:
        print("\n".join([str(folder), *map(str, findings)]))
    return 0 if ok else 1

"""Fetches transformers' own model tests, which its source distribution carries, into `.cache/official` (not in git).

    python tests/official/fetch.py

The tests fit the installed version of transformers only, so the folder is named after it. They are imported from there
as the package `transformers_tests`; what they import from parts that are not distributed is replaced by empty mixins.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


VERSION = version("transformers")
FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "official" / VERSION
PACKAGE = FOLDER / "transformers_tests"
STUBS = {
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "__init__.py": "",  # the last file: where it is, all are
}


def fetched() -> bool:
    return (PACKAGE / "__init__.py").exists()


def main():
    if fetched():
        return
    with tempfile.TemporaryDirectory() as downloads:
        source = ["--no-deps", "--no-binary", ":all:", f"transformers=={VERSION}"]
        pip("download", *source, "--dest", downloads)
        pip("install", "--upgrade", "--target", FOLDER, "parameterized")
        with tarfile.open(next(Path(downloads).glob("transformers-*.tar.gz"))) as archive:
            for member in archive:
                path = Path(member.name)
                if path.parent.name == "tests" and path.suffix == ".py":
                    write(PACKAGE / path.name, archive.extractfile(member).read().decode())
    for name, text in STUBS.items():
        write(PACKAGE / name, text)
    print(f"transformers' common tests are in {PACKAGE}")


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

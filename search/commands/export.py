"""Exports a checkpoint to a runtime without PyTorch."""

from itertools import islice
from pathlib import Path

import transformers

from ..artifacts.export import check_request, export
from ..data.corpus import documents, load_corpus


def main(options) -> None:
    """Writes the files and says how large each is and how far from PyTorch."""
    transformers.logging.disable_progress_bar()
    texts = ["-"] if options.corpus else []  # a wrong option shall not wait for the data
    check_request(options.precision, options.runtime, texts)
    if options.corpus:
        corpus = load_corpus(options.corpus, options.corpus_config, options.text_column)
        texts = list(islice(documents(corpus.train), options.calibration_texts))
    folder = Path(options.output or Path(options.folder) / options.runtime)
    files = export(options.folder, folder, options.precision, options.runtime, options.encoder, texts)
    for file in files:
        print(
            f"{folder / file.file}: {file.precision}, {file.bytes / 1e6:.1f} MB, "
            f"largest difference from PyTorch {file.difference:.1e} ({100 * file.relative_error:.2g} %)"
        )

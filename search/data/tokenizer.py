"""The tokenizer of a run: loaded, or trained on the corpus."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import UserError, one_line
from ..files import check_whole
from .cache import content_key, make_once
from .corpus import Corpus
from .sources import quiet
from .tokenizer_kinds import COVERAGE, TOKENIZER_KINDS


TOO_MANY_UNKNOWN = 0.01
"""Share of unknown tokens above which a user is warned."""


def load_tokenizer(
    source: str | None,
    corpus: Corpus | None = None,
    cache_dir: Path | None = None,
    vocab_size: int = 8192,
    kind: str = "wordpiece",
) -> PreTrainedTokenizerFast:
    """A tokenizer that can pad, mask, and put a sequence between a first and a last token.

    Args:
        source: Folder or Hub id; None trains one on the corpus, once, and keeps it in `cache_dir`.
        vocab_size: Tokens of a trained tokenizer, special ones included.
        kind: Name in `TOKENIZER_KINDS` of what is trained.

    Raises:
        UserError: There is no such tokenizer, or it lacks what masked language modelling needs.
    """
    if source is None:
        if corpus is None or cache_dir is None:
            raise ValueError("without a source there has to be a corpus to train on, and a folder for the tokenizer")

        text = corpus.train

        def train(folder: Path) -> None:
            TOKENIZER_KINDS[kind](text, vocab_size).save_pretrained(folder)

        key = content_key(text, vocab_size, COVERAGE, kind)
        source = str(make_once(Path(cache_dir) / f"tokenizer-{key}", train))
    elif not Path(source).exists() and source.startswith((".", "/", "~")):
        raise UserError(f"tokenizer {source}: no such folder")
    check_whole(source)
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # The `tokenizers` library raises plain exceptions.
        raise UserError(f"tokenizer {source}: {one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {source}: it has no fast version; accepted is what the `tokenizers` library can run"
        )
    missing = [name for name in ("pad", "mask", "cls", "sep") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise UserError(f"tokenizer {source}: it has no {' and no '.join(missing)} token")
    shared = [name for name in ("pad", "cls", "sep") if getattr(tokenizer, f"{name}_token") == tokenizer.mask_token]
    if shared:
        raise UserError(
            f"tokenizer {source}: its mask token {tokenizer.mask_token!r} is also its {' and '.join(shared)} token, "
            "so what is masked could not be told from it"
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows embeddings need: one more than the largest id, which may lie beyond the number of tokens."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def unknown_share(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of token ids, special ones left out, that stand for what the tokenizer does not know."""
    if tokenizer.unk_token_id is None:
        return 0.0
    special = np.isin(tokens, [id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id])
    return float(np.count_nonzero(tokens == tokenizer.unk_token_id) / max(1, tokens.size - np.count_nonzero(special)))

"""A trained encoder that others learn from: its states of a text, kept on disk, and its word embeddings."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

import flexibert  # noqa: F401  # registers the encoders with the Auto classes

from ..data.passages import Passages
from ..data.sources import quiet
from ..data.tokenizer import vocabulary_size
from ..errors import UserError, one_line
from ..files import check_whole, replace_file, reported


CHUNK = 2048
"""Passages whose states are made, and written, at once."""

TOKENS_AT_ONCE = 4096
"""Of a forward pass of the teacher, padding included."""

SMALLEST = 64
"""Fewest numbers that a state is reduced to."""


class Teacher:
    """An encoder of transformers with its own tokenizer, for reading only.

    Attributes:
        name: For people, without the path to a local folder.
        model: In evaluation mode, float32.
        digest: Equal for teachers with the same weights.
    """

    def __init__(self, source: str, predicts: bool = False):
        """Loads an encoder.

        Args:
            source: Folder or Hub id of any.
            predicts: Whether it shall predict masked tokens.

        Raises:
            UserError: There is none, its weights are not all there, it is no encoder, or it cannot predict.
        """
        self.source = source
        self.name = Path(source).resolve().name if Path(source).expanduser().exists() else source
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
            raise UserError(f"teacher {source}: no such folder")
        check_whole(source)
        try:
            with quiet():
                auto_class = AutoModelForMaskedLM if predicts else AutoModel
                model, loading = auto_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"teacher {source} cannot be loaded: {one_line(error)}") from None
        lost = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
        if lost:
            what = "has no head for masked tokens, or lacks other" if predicts else "lacks"
            raise UserError(f"teacher {source} {what} weights: {lost[0]} and {len(lost) - 1} more")
        model.eval().requires_grad_(False)
        self.model = model.base_model
        self.predictor: Any = model if predicts else None
        self._check_encoder()

    def _check_encoder(self) -> None:
        """Raises UserError unless every token's state depends on what follows it."""
        known = getattr(self.model.config, "vocab_size", None)
        if self.model.config.is_encoder_decoder or not known or self.word_embeddings is None:
            raise UserError(f"teacher {self.source}: {self.model.config.model_type} is no encoder of text")
        ids = torch.full((2, 4), min(5, known - 1))
        ids[1, -1] = known // 2
        try:
            states = self.states(ids, torch.ones_like(ids), torch.zeros_like(ids))
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"teacher {self.source} is no encoder of text: {one_line(error)}") from None
        if torch.equal(states[0, 0], states[1, 0]):
            raise UserError(
                f"teacher {self.source}: {self.model.config.model_type} is no encoder, a token does not see those "
                "behind it"
            )

    @property
    def word_embeddings(self) -> Any:
        """(V, E); None where a model has none, which is refused."""
        embeddings = self.model.get_input_embeddings()
        return getattr(embeddings, "weight", None)

    @property
    def size(self) -> int:
        """Width of a state."""
        return self.model.config.hidden_size

    @property
    def positions(self) -> int:
        """Tokens that it takes at most."""
        return positions(self.model)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.blake2b(repr(self.model.config.to_dict().get("model_type")).encode(), digest_size=8)
        for name, parameter in self.model.named_parameters():
            if "pooler" in name:  # which is not there beside a head for masked tokens
                continue
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def states(self, input_ids, attention_mask, token_type_ids) -> torch.Tensor:
        """Last hidden states of token ids (B, L): (B, L, D), of no meaning at padding."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**self._accepted(inputs)).last_hidden_state

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(N, V) at the `positions` (N,) of the flattened batch, for tokens of the tokenizer."""
        self.predictor.to(inputs["input_ids"].device)
        logits = self.predictor(**self._accepted({name: inputs[name] for name in INPUTS})).logits
        return logits.flatten(0, 1)[inputs["positions"]][:, : self.vocab_size]

    def _accepted(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Without token types, where it knows none."""
        types = getattr(self.model.config, "type_vocab_size", 0)
        return inputs if types > 1 else {name: inputs[name] for name in INPUTS[:2]}

    def check_fit(self, tokenizer, longest: int) -> None:
        """Raises UserError where the tokenizer has tokens or sequences lengths that the teacher has not."""
        size = vocabulary_size(tokenizer)
        if size > len(self.word_embeddings):
            raise UserError(
                f"teacher {self.source}: its tokenizer has {size} tokens, the model has {len(self.word_embeddings)}"
            )
        self.vocab_size = len(tokenizer)
        if longest > self.positions:
            raise UserError(
                f"teacher {self.source} takes {self.positions} tokens, sequence_length {longest} is beyond it"
            )


def positions(model: PreTrainedModel) -> int:
    """Tokens that a model takes at most; a large number where nothing limits them."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None or getattr(model.config, "position_embedding_type", "absolute") == "rotary":
        return 2**31
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            most -= module.padding_idx + 1  # RoBERTa counts positions from behind its padding index.
    return most


@torch.no_grad()
def give_embeddings(table: torch.Tensor, teacher: Teacher, pad_token_id: int | None) -> None:
    """Fills a student's word embeddings (V, E) with the teacher's: their first principal components.

    (W - mean) U with U the eigenvectors of W's covariance with the E largest eigenvalues, scaled to the standard
    deviation of the random numbers that stood there. Columns beyond the teacher's width keep those, and so do tokens
    that the teacher has not.
    """
    given = teacher.word_embeddings.detach().to("cpu", torch.float64)
    centred = given - given.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    width, rows = min(table.shape[1], given.shape[1]), min(len(table), len(given))
    vectors = vectors.flip(1)[:, :width]
    # An eigenvector's sign is arbitrary: its largest entry shall be positive, on every machine.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    reduced = centred @ (vectors * largest.sign())
    reduced *= table.double().std() / reduced.std()
    table[:rows, :width] = reduced[:rows].to(table)
    if pad_token_id is not None:
        table[pad_token_id] = 0


# --- states on disk -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a state is stored: so many numbers of a type. One byte a number goes with a scale in float16 per state."""

    size: int
    dtype: str

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize + (2 if self.dtype == "int8" else 0)


def choose_form(size: int, tokens: int, gigabytes: float) -> Form:
    """The truest form of so many states of a width that fits: float16, int8, int8 of fewer principal components.

    Raises:
        UserError: Even the smallest does not fit.
    """
    room = gigabytes * 1e9 / max(1, tokens)
    for dtype in ("float16", "int8"):
        if Form(size, dtype).bytes <= room:
            return Form(size, dtype)
    reduced = int(room) - 2
    if reduced < min(SMALLEST, size):
        least = Form(min(SMALLEST, size), "int8").bytes * tokens / 1e9
        raise UserError(
            f"the teacher's states of {tokens:,} tokens take at least {least:.1f} GB, --teacher-cache-gb is "
            f"{gigabytes:g}; give more, or fewer steps"
        )
    return Form(reduced, "int8")


@dataclass(frozen=True)
class StateCache:
    """The teacher's states of passages, in files of a chunk of passages each, mapped into memory.

    A chunk is written aside and then renamed, so a killed process or a full disk costs one chunk at most, and a later
    training on more of the same text makes only what is not there.

    Attributes:
        folder: Named after teacher, text, length and form.
        passages: In the order of the files.
        form: Of each state.
    """

    folder: Path
    passages: Passages
    form: Form
    opened: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, compare=False)

    @property
    def chunks(self) -> int:
        return math.ceil(len(self.passages) / CHUNK)

    def rows(self, indices: np.ndarray, length: int) -> np.ndarray:
        """States of passages, padded with zeros: (B, length, d) float32."""
        states = np.zeros((len(indices), length, self.form.size), np.float32)
        for row, index in enumerate(indices):
            values, scales = self._chunk(index // CHUNK)
            start = self.passages.starts[index] - self.passages.starts[index - index % CHUNK]
            tokens = slice(start, start + self.passages.starts[index + 1] - self.passages.starts[index])
            part = values[tokens].astype(np.float32)
            if self.form.dtype == "int8":
                part *= scales[tokens, None]
            states[row, : len(part)] = part
        return states

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        if chunk not in self.opened:
            path, tokens = self._path(chunk), self._tokens(chunk)
            size = tokens * self.form.size * np.dtype(self.form.dtype).itemsize
            values = np.memmap(path, self.form.dtype, "r", shape=(tokens, self.form.size))
            scales = np.empty(0)
            if self.form.dtype == "int8":
                scales = np.memmap(path, np.float16, "r", offset=size, shape=(tokens,)).astype(np.float32)
            self.opened[chunk] = values, scales
        return self.opened[chunk]

    def _path(self, chunk: int) -> Path:
        # With its number of passages, because the last chunk of a shorter training is a part of one.
        count = min(CHUNK, len(self.passages) - chunk * CHUNK)
        return self.folder / f"{chunk:05d}-{count}.bin"

    def _tokens(self, chunk: int) -> int:
        last = min((chunk + 1) * CHUNK, len(self.passages))
        return int(self.passages.starts[last] - self.passages.starts[chunk * CHUNK])

    def missing(self) -> list[int]:
        """Chunks that are still to be made; a file of another size is none."""
        return [
            chunk
            for chunk in range(self.chunks)
            if not self._path(chunk).is_file()
            or self._path(chunk).stat().st_size != self._tokens(chunk) * self.form.bytes
        ]

    def make(
        self, teacher: Teacher, pad_token_id: int, accelerator: Accelerator, told: Callable[[int, int], None]
    ) -> None:
        """Makes what is missing; several processes share the work. `told` hears (tokens done, tokens in all).

        Raises:
            UserError: The states are not finite or too large, or the disk is full; chunks that are done stay.
        """
        with reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        total, done = sum(map(self._tokens, missing)), 0
        basis = self._basis(teacher, pad_token_id, accelerator) if missing else None
        for chunk in missing[accelerator.process_index :: accelerator.num_processes]:
            first = chunk * CHUNK
            rows = np.arange(first, min(first + CHUNK, len(self.passages)))

            def seen(tokens: int, before: int = done) -> None:
                told(before + tokens * accelerator.num_processes, total)

            states = run_teacher(teacher, self.passages, rows, pad_token_id, accelerator, seen)
            if basis is not None:
                states = states @ basis
            with reported(self._path(chunk)):
                replace_file(self._path(chunk), encode(states, self.form))
            done += self._tokens(chunk) * accelerator.num_processes
        accelerator.wait_for_everyone()

    def _basis(self, teacher: Teacher, pad_token_id: int, accelerator: Accelerator) -> np.ndarray | None:
        """(D, d) principal directions of the states of the first passages, if states are stored reduced.

        Directions of the second moment, not of the covariance: so angles between whole states change least.
        """
        if self.form.size == teacher.size:
            return None
        path = self.folder / "basis.npy"
        if accelerator.is_main_process and not path.is_file():
            rows = np.arange(min(512, len(self.passages)))
            states = run_teacher(teacher, self.passages, rows, pad_token_id, accelerator).astype(np.float64)
            _, vectors = np.linalg.eigh(states.T @ states)
            with reported(path):
                aside = self.folder / "basis.partial.npy"
                np.save(aside, vectors[:, ::-1][:, : self.form.size].astype(np.float32))
                aside.replace(path)
        accelerator.wait_for_everyone()
        return np.load(path)


def run_teacher(
    teacher: Teacher,
    passages: Passages,
    rows: np.ndarray,
    pad_token_id: int,
    accelerator: Accelerator,
    told: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """States of all tokens of some passages, in their order: (tokens, D) float32.

    Passages of similar length run together, which saves nearly all padding.

    Raises:
        UserError: States are not finite, or wider than float16 holds.
    """
    lengths = passages.lengths[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    states = np.empty((starts[-1], teacher.size), np.float32)
    order = np.argsort(lengths, kind="stable")[::-1]
    model = teacher.model.to(accelerator.device)
    at, done = 0, 0
    while at < len(order):
        length = int(lengths[order[at]])
        batch = order[at : at + max(1, TOKENS_AT_ONCE // length)]
        at += len(batch)
        inputs = passages.pad(rows[batch], length, pad_token_id)
        with torch.inference_mode(), accelerator.autocast():
            output = teacher.states(*(torch.from_numpy(inputs[name]).to(model.device) for name in INPUTS))
        made = output.float().cpu().numpy()
        for row, index in enumerate(batch):
            states[starts[index] : starts[index + 1]] = made[row, : lengths[index]]
        done += int(lengths[batch].sum())
        told(done)
    largest = np.abs(states).max(initial=0)
    if not np.isfinite(largest):
        raise UserError(f"teacher {teacher.source}: its states are not finite, there is nothing to learn from")
    if largest > np.finfo(np.float16).max:
        raise UserError(f"teacher {teacher.source}: its states reach {largest:.3g}, float16 holds 65,504 at most")
    return states


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encode(states: np.ndarray, form: Form) -> bytes:
    """States (T, d) as they lie in a file: float16, or int8 and behind them a float16 scale per state."""
    if form.dtype == "float16":
        return states.astype(np.float16).tobytes()
    scales = (np.abs(states).max(1, initial=1e-4) / 127).astype(np.float16)
    scales = np.maximum(scales, np.finfo(np.float16).smallest_normal)
    values = np.rint(states / scales[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8)
    return values.tobytes() + scales.tobytes()


@dataclass(frozen=True)
class TaughtText:
    """Passages and the teacher's states of them, ready to learn from."""

    passages: Passages
    states: StateCache
    teacher: Teacher

    @property
    def size(self) -> int:
        """Tokens."""
        return int(self.passages.starts[-1])


def taught_text(
    passages: Passages,
    teacher: Teacher,
    pad_token_id: int,
    accelerator: Accelerator,
    cache_dir: Path,
    gigabytes: float,
    say: Callable[[str], None],
    told: Callable[[int, int], None],
    form: Form | None = None,
) -> TaughtText:
    """Has the teacher read passages, or finds what it made of them before.

    Args:
        gigabytes: What the states may take on disk.
        say: Hears beforehand, in a line, what they take.
        told: Hears (tokens done, tokens in all) while it reads.
        form: Of the states, if that is decided.

    Raises:
        UserError: They do not fit, are not finite, or cannot be written.
    """
    tokens = int(passages.starts[-1])
    form = form or choose_form(teacher.size, tokens, gigabytes)
    mode = accelerator.mixed_precision
    key = f"states-{teacher.digest}-{passages.name}-{form.size}-{form.dtype}-{mode}"
    cache = StateCache(Path(cache_dir) / key, passages, form)
    missing = cache.missing()
    if missing:
        to_make = sum(map(cache._tokens, missing))
        say(
            f"teacher {teacher.name}: its states of {tokens:,} tokens take {tokens * form.bytes / 1e9:.2f} GB "
            f"({form.size} x {form.dtype}), {to_make:,} tokens are still to be read"
        )
    cache.make(teacher, pad_token_id, accelerator, told)
    text = TaughtText(passages, cache, teacher)
    accelerator.wait_for_everyone()
    return text

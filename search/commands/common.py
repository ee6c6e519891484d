"""What the commands share: processes and devices, options over recipes, data, trackers."""

import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import optuna
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import KwargsHandler
from transformers import PreTrainedTokenizerBase

from ..data.block_stream import BlockStream
from ..data.blocks import check_length, tokenized_blocks
from ..data.cache import content_key
from ..data.corpus import Corpus, load_corpus, stream_corpus
from ..data.passages import passages
from ..data.tasks import OwnData
from ..data.tokenizer import TOO_MANY_UNKNOWN, load_tokenizer, unknown_share, vocabulary_size
from ..errors import UserError
from ..progress import RunProgress
from ..recipe import Recipe
from ..runtimes.conditions import usable_cores
from ..study.processes import rejoin
from ..study.run_folder import CACHE
from ..training.memory import keep_freed_memory
from ..training.objectives import LOGITS, objective_weights
from ..training.pretraining import PretrainingBudget
from ..training.teacher import TaughtText, Teacher, taught_text


def start(options, folder: Path, *handlers: KwargsHandler) -> Accelerator:
    """Silences libraries, sets up processes and devices, and makes sure that the folder can be written."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    trackers = getattr(options, "report_to", ())
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in installed:
            raise UserError(
                f"--report-to: {tracker} is not there, installed is {', '.join(installed) or 'no tracker'}"
            )
    rejoin()
    try:
        accelerator = Accelerator(
            mixed_precision=options.precision,
            log_with=list(trackers) or None,
            project_dir=str(folder),
            kwargs_handlers=list(handlers),
        )
    except ValueError as error:  # half precision without a GPU
        raise UserError(str(error)) from None
    keep_freed_memory()
    if accelerator.device.type == "cpu" and os.environ.get("ACCELERATE_MIXED_PRECISION"):
        # `accelerate launch` (1.15) leaves a CPU process one thread, however many cores there are.
        torch.set_num_threads(max(1, usable_cores() // accelerator.num_processes))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return accelerator


def override(recipe: Recipe, options) -> Recipe:
    """The recipe with what the user gave on the command line."""
    given = vars(options)
    changes = {f.name: given[f.name] for f in dataclasses.fields(Recipe) if f.name in given and f.name != "sampler"}
    if "sampler" in given:
        same = given["sampler"] == recipe.sampler["name"]
        changes["sampler"] = recipe.sampler if same else {"name": given["sampler"]}
    pretraining = {
        name: given[name] for name in ("steps", "batch_size", "sequence_length", "learning_rate") if name in given
    }
    if given.get("pruner") == "none":
        changes["pruner"] = None
    changes["pretraining"] = dataclasses.replace(recipe.pretraining, **pretraining)
    if "epochs" in given:
        changes["finetuning"] = dataclasses.replace(recipe.finetuning, epochs=given["epochs"], max_steps=-1)
    return dataclasses.replace(recipe, **changes)


def own_data(options) -> OwnData:
    """How one's own data are read, as the command line says."""
    return OwnData(options.task_type, options.validation, options.encoding, options.task_config)


@dataclass(frozen=True)
class Data:
    """The text of a run, ready for training: (N, L) token ids, in memory or read meanwhile, or a teacher's states."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    blocks: np.ndarray | TaughtText | BlockStream
    validation_blocks: np.ndarray | TaughtText
    teacher: Teacher | None = None

    @property
    def teacher_name(self) -> str:
        """Empty without a teacher."""
        return self.teacher.name if self.teacher is not None else ""


def load_data(recipe: Recipe, options, accelerator: Accelerator, progress: RunProgress, runs: Path) -> Data:
    """Loads text and tokenizer, first on the main process, which fills the caches, then on the others."""
    cache = runs / CACHE
    length = recipe.pretraining.sequence_length
    objective_weights(recipe.pretraining.objectives, recipe.teacher is not None)
    given = "teacher" if recipe.teacher is not None else "tokenizer"
    if recipe.tokenizer_kind != "wordpiece" and getattr(recipe, given) is not None:
        raise UserError(
            f"--tokenizer-kind {recipe.tokenizer_kind} says how a tokenizer is trained, but --{given} "
            f"{getattr(recipe, given)} brings one"
        )
    if recipe.streaming and recipe.teacher is not None:
        raise UserError("--streaming and --teacher do not go together: the teacher reads the text before the training")
    if recipe.teacher is not None:
        return load_taught_data(recipe, options, accelerator, progress, cache)
    load = stream_corpus if recipe.streaming else load_corpus
    with accelerator.main_process_first():
        corpus = load(recipe.corpus, recipe.corpus_config, options.text_column, options.encoding)
        tokenizer = load_tokenizer(recipe.tokenizer, corpus, cache, recipe.vocab_size, recipe.tokenizer_kind)
        blocks: np.ndarray | BlockStream
        if corpus.stream is None:
            blocks = tokenized_blocks(corpus.train, tokenizer, length, cache)
            size = f"{blocks.size:,} tokens to train on"
        else:
            check_length(length)
            blocks = BlockStream(corpus.stream, tokenizer, length, content_key(corpus.train, length))
            size = f"read while it is trained on, in {corpus.stream.shards.num_shards:,} parts"
        validation_blocks = tokenized_blocks(corpus.validation, tokenizer, length, cache)
    progress.say(f"{corpus.name}: {size}, vocabulary of {vocabulary_size(tokenizer):,}")
    say_unknown(validation_blocks, tokenizer, progress)
    return Data(corpus, tokenizer, blocks, validation_blocks)


def say_unknown(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, progress: RunProgress) -> None:
    """How much of the validation text the tokenizer does not know, and what to do where that is much."""
    share = unknown_share(np.asarray(tokens), tokenizer)
    line = f"{100 * share:.2f} % of the validation text is unknown tokens"
    if share > TOO_MANY_UNKNOWN:
        line = f"warning: {line}; a larger vocabulary, another tokenizer or --tokenizer-kind byte_bpe would know more"
    progress.say(line)


def load_taught_data(recipe: Recipe, options, accelerator: Accelerator, progress: RunProgress, cache: Path) -> Data:
    """The same under a teacher, which reads as much of the text as the training will see, once."""
    budget = recipe.pretraining
    with accelerator.main_process_first():
        corpus = load_corpus(recipe.corpus, recipe.corpus_config, options.text_column, options.encoding)
        teacher = Teacher(str(recipe.teacher), predicts=LOGITS in budget.objectives)
        tokenizer = load_tokenizer(recipe.teacher, corpus, cache)
        if recipe.tokenizer is not None:
            other = load_tokenizer(recipe.tokenizer, corpus, cache)
            if other.get_vocab() != tokenizer.get_vocab():
                raise UserError(
                    f"--tokenizer {recipe.tokenizer} is another one than that of the teacher {recipe.teacher}, "
                    "whose states belong to its own tokens; leave it out"
                )
        teacher.check_fit(tokenizer, budget.sequence_length)
        train = passages(corpus.train, tokenizer, budget.sequence_length, cache).head(max(1, budget.tokens))
        validation = passages(corpus.validation, tokenizer, budget.sequence_length, cache).head(VALIDATION_TOKENS)
    size = int(train.starts[-1])
    say_unknown(validation.tokens[: validation.starts[-1]], tokenizer, progress)
    progress.say(f"{corpus.name}: {size:,} tokens to train on in {len(train):,} passages")

    def told(done: int, total: int) -> None:
        progress.update("teacher reads", done, total)

    reading = (teacher, tokenizer.pad_token_id, accelerator, cache, options.teacher_cache_gb, progress.say, told)
    taught = taught_text(train, *reading)
    return Data(corpus, tokenizer, taught, taught_text(validation, *reading, form=taught.states.form), teacher=teacher)


VALIDATION_TOKENS = 20_000
"""That a teacher reads of the validation text."""


def training_display(
    progress: RunProgress,
    accelerator: Accelerator,
    options,
    name: str,
    budget: PretrainingBudget,
    label: Callable[[float], str],
) -> Callable[[int, float, float], None]:
    """Shows steps done, loss in nats, tokens per second (`label` takes them) and time left, and tells the trackers."""
    if options.report_to:
        accelerator.init_trackers(name, config=dataclasses.asdict(budget))

    def show(done: int, loss: float, rate: float) -> None:
        tokens_left = (budget.steps - done) * budget.batch_size * budget.sequence_length
        progress.update(label(rate), done, budget.steps, loss, rate, tokens_left / rate)
        if options.report_to:
            accelerator.log({"loss_nats": loss, "tokens_per_second": rate}, step=done)

    return show


def interpreter() -> str:
    """What to type to get this Python."""
    found = shutil.which("python")
    if found and Path(found).resolve() == Path(sys.executable).resolve():
        return "python"
    return os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable

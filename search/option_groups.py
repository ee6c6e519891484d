"""Groups of options that several sub-commands have, or that follow from a table."""

import argparse

from .cost import COSTS, SCORE, limit_option
from .option_values import names, positive, positive_float, seed, tasks, whole
from .runtimes.table import RUNTIMES


RECIPE = "as in the recipe"


def add_data(parser, recipe: bool) -> None:
    """Options about data; with a recipe their defaults are its own."""
    group = parser.add_argument_group("data")
    default = f" (default: {RECIPE})" if recipe else ""
    group.add_argument(
        "--corpus",
        default=argparse.SUPPRESS if recipe else None,
        help="text to pretrain on: Hub data set, folder in datasets layout, parquet, json, csv or plain text; "
        f"by default text that comes with Python{default}",
    )
    group.add_argument(
        "--corpus-config",
        default=argparse.SUPPRESS if recipe else None,
        help=f"configuration of the corpus, where it has several{default}",
    )
    group.add_argument(
        "--tokenizer",
        default=argparse.SUPPRESS if recipe else None,
        help=f"folder or Hub id; by default one is trained on the corpus at first use{default}",
    )
    if recipe:
        group.add_argument(
            "--streaming",
            action="store_true",
            default=argparse.SUPPRESS,
            help="read the corpus while it is trained on, shuffled within a window, so that it may be larger than the "
            f"disk{default}",
        )
        group.add_argument(
            "--tokenizer-kind",
            choices=("wordpiece", "unigram", "byte_bpe"),
            default=argparse.SUPPRESS,
            help="what is trained: WordPiece in lower case, or with upper case pieces by a unigram language model, or "
            f"pairs of bytes, to which no text is unknown{default}",
        )
        group.add_argument(
            "--teacher",
            default=argparse.SUPPRESS,
            metavar="DIR|ID",
            help=f"encoder whose states are learnt instead of masked tokens, with its tokenizer{default}",
        )
        group.add_argument(
            "--embeddings",
            choices=("random", "teacher"),
            default=argparse.SUPPRESS,
            help=f"first word embeddings under a teacher: random, or its principal components{default}",
        )
        group.add_argument(
            "--teacher-cache-gb",
            type=positive_float,
            default=20.0,
            metavar="GB",
            help="what the teacher's states may take on disk; they are stored in fewer bits or dimensions where "
            "they must (default: %(default)s)",
        )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="of text files, such as latin-1 (default: utf-8, whatever marks it begins with)",
    )
    group.add_argument(
        "--text-column", default="text", help="column of the corpus that holds the text (default: %(default)s)"
    )


def add_training(parser, one_seed: bool = True, trackers: bool = True) -> None:
    group = parser.add_argument_group("training")
    if one_seed:
        group.add_argument("--seed", type=seed, default=0, help="of everything random")
    group.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), help="mixed precision; as in the Accelerate configuration"
    )
    if trackers:
        group.add_argument("--report-to", type=names, default=(), help="Accelerate trackers, for instance tensorboard")


def add_budget(parser, recipe: bool) -> None:
    """Overrides of a budget of pretraining."""
    group = parser.add_argument_group("pretraining budget")
    suffix = f" (default: {RECIPE})"
    for option, kind, text in (
        ("--steps", whole, "optimiser steps; 0 keeps the first weights"),
        ("--batch-size", positive, "sequences per step, all processes together"),
        ("--sequence-length", positive, "tokens per sequence"),
        ("--learning-rate", positive_float, "peak learning rate"),
    ):
        group.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar="N", help=text + suffix)


def add_tasks(parser, recipe: bool) -> None:
    group = parser.add_argument_group("tasks")
    text = "comma-separated: GLUE tasks, all, word_order, next_sentence, or own data as path[:text[+text2]:label]"
    if recipe:
        group.add_argument("--tasks", type=tasks, default=argparse.SUPPRESS, help=f"{text} (default: {RECIPE})")
    else:
        group.add_argument("--tasks", type=tasks, required=True, help=text)
    group.add_argument(
        "--validation", metavar="DATA", help="own data to validate with, for one task of one's own (default: a split)"
    )
    group.add_argument(
        "--task-config", metavar="NAME", help="configuration of own data that have several, as their card names it"
    )
    group.add_argument(
        "--task-type",
        choices=("classification", "regression"),
        help="what numbers in the label column of own data mean (default: said with the reason)",
    )
    group.add_argument("--glue", default="nyu-mll/glue", help="Hub id or folder of GLUE")
    suffix = f" (default: {RECIPE})" if recipe else ""
    group.add_argument(
        "--max-train-examples",
        type=positive,
        default=argparse.SUPPRESS if recipe else None,
        metavar="N",
        help=f"cap on the training examples of a task{suffix}",
    )
    group.add_argument(
        "--epochs",
        type=positive_float,
        default=argparse.SUPPRESS if recipe else 3.0,
        metavar="N",
        help=f"of fine-tuning{suffix}",
    )


def add_costs(parser) -> None:
    """Objectives, and a limit on each cost."""
    group = parser.add_argument_group("objectives and limits")
    group.add_argument(
        "--objectives",
        type=names,
        default=(SCORE,),
        help=f"{SCORE}, and after a comma what it is weighed against: {' or '.join(COSTS)}",
    )
    for name, cost in COSTS.items():
        group.add_argument(
            f"--{limit_option(name).replace('_', '-')}",
            type=positive if cost.whole else positive_float,
            metavar=cost.unit.upper() or "N",
            help=cost.text,
        )


def add_latency(parser) -> None:
    """Conditions of latency and energy; whoever gives one wants the latency of every trial."""
    group = parser.add_argument_group("conditions of latency and energy, which are measured in a process of its own")
    known = "; ".join(f"{name}: {runtime.text}" for name, runtime in RUNTIMES.items())
    group.add_argument(
        "--latency-runtime",
        choices=tuple(RUNTIMES),
        default=argparse.SUPPRESS,
        help=f"what encoders run on (default: torch). {known}",
    )
    for name, text in (
        ("batch", "sequences of a forward pass (default: 1)"),
        ("length", "tokens of each (default: as in pretraining)"),
        ("threads", "cores that it is pinned to (default: all that the command may use)"),
        ("repetitions", "whose median counts (default: 20)"),
    ):
        group.add_argument(f"--latency-{name}", type=positive, default=argparse.SUPPRESS, metavar="N", help=text)


def add_json(parser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")

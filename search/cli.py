"""The command: its options. What each sub-command does is in `commands/`."""

import argparse
import codecs
import importlib
import io
import os
import sys
import unicodedata
from collections.abc import Sequence

from .cost import COSTS, SCORE, limit_option
from .errors import StartAnew, TrainingDiverged, UserError, without_secrets
from .option_values import names, positive, positive_float, seconds, seed, seeds, share, tasks, whole
from .study.signals import stoppable


DESCRIPTION = """\
Searches heterogeneous encoders, trains them, and leaves ordinary Hugging Face checkpoints.
Without a sub-command it runs the recipe "quickstart", which needs no data and no network.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, as all other messages of the command."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 where the user made a mistake or chose a learning rate too high to train, or 128
    and the number of the signal that stopped it."""
    speak_plainly()
    try:
        with stoppable():
            options = build_parser().parse_args(arguments)
            try:
                return options.run(options) or 0
            except StartAnew as error:
                if arguments is not None:  # the program is another one, which is not to be replaced
                    raise UserError(str(error)) from error
                from .study.processes import start_anew

                return start_anew(error.hours)
    except (UserError, TrainingDiverged) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"search: error: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            print("search: stopped; the same command goes on from here", file=sys.stderr)
        return getattr(stop, "status", 130)


def speak_plainly() -> None:
    """Lets a terminal that knows few characters show others like them, instead of ending in an error."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks have others, which take anything
            stream.reconfigure(errors="plain")


PLAIN = {"\N{MULTIPLICATION SIGN}": "x", "\N{RIGHTWARDS ARROW}": "->", "\N{EN DASH}": "-", "\N{PLUS-MINUS SIGN}": "+-"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what looks most like the characters that cannot be shown."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(PLAIN.get(character, character) for character in error.object[error.start : error.end])
    shown = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return shown or "?" * len(text), error.end


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="search", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _add_run(commands)
    _add_supernet(commands)
    _add_pretrain(commands)
    _add_finetune(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_export(commands)
    _add_publish(commands)
    _add_pull(commands)
    _add_list(commands)
    parser.set_defaults(**vars(parser.parse_args(["run"])))
    return parser


def _command(commands, name: str, summary: str) -> argparse.ArgumentParser:
    """A sub-command; the module of its name is imported only when it runs, because it imports torch."""

    def run(options):
        return importlib.import_module(f".commands.{name}", __package__).main(options)

    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


RECIPE = "as in the recipe"


def _add_data(parser, recipe: bool) -> None:
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


def _add_training(parser, one_seed: bool = True, trackers: bool = True) -> None:
    group = parser.add_argument_group("training")
    if one_seed:
        group.add_argument("--seed", type=seed, default=0, help="of everything random")
    group.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), help="mixed precision; as in the Accelerate configuration"
    )
    if trackers:
        group.add_argument("--report-to", type=names, default=(), help="Accelerate trackers, for instance tensorboard")


def _add_budget(parser, recipe: bool) -> None:
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


def _add_tasks(parser, recipe: bool) -> None:
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


def _add_run(commands) -> None:
    parser = _command(commands, "run", "search for encoders (the default command)")
    parser.add_argument("--recipe", default="quickstart", help="name (see the command list) or path of a .json")
    parser.add_argument("--name", help="of the run folder; by default the recipe's")
    parser.add_argument("--runs", default="runs", help="folder that holds run folders")
    parser.add_argument(
        "--trials",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"different architectures to train, those of earlier starts included (default: {RECIPE})",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"end when so many trials in a row brought no better score (default: {RECIPE})",
    )
    parser.add_argument("--sampler", default=argparse.SUPPRESS, help=f"name, see the command list (default: {RECIPE})")
    parser.add_argument(
        "--pruner",
        default=argparse.SUPPRESS,
        help=f"stop candidates that look hopeless: name, see the command list, or none (default: {RECIPE})",
    )
    parser.add_argument(
        "--hours",
        type=positive_float,
        metavar="N",
        help="end this start of the search after so many hours, the trial at work included; the same command goes on",
    )
    parser.add_argument(
        "--start-from",
        type=names,
        default=argparse.SUPPRESS,
        metavar="NAMES",
        help="comma-separated encoders to train first: names of the zoo, JSON files, checkpoints, or run folders, "
        f"whose best ones are taken (default: {RECIPE})",
    )
    parser.add_argument(
        "--hierarchy",
        action="store_true",
        default=argparse.SUPPRESS,
        help="search level by level, each between the best of those before: stacks of two equal layers, single "
        f"layers, mixed feed-forward widths, mixed heads (default: {RECIPE})",
    )
    parser.add_argument(
        "--transfer",
        choices=("none", "ordered", "random_projection"),
        default=argparse.SUPPRESS,
        help=f"start candidates from the weights of the trained encoder most like them (default: {RECIPE})",
    )
    parser.add_argument(
        "--evaluator",
        choices=("scratch", "supernet"),
        default="scratch",
        help="whether candidates start from random weights or from those of --supernet; with the latter --steps 0 "
        "scores them as they are",
    )
    parser.add_argument("--supernet", metavar="DIR", help="super-network of the same recipe, see the command supernet")
    parser.add_argument(
        "--storage", help="Optuna storage URL, for workers on several machines; by default SQLite in the run folder"
    )
    parser.add_argument(
        "--storage-timeout",
        type=seconds,
        default=600.0,
        metavar="TIME",
        help="how long a storage that is away is waited for, in seconds or as 10m or 2h",
    )
    parser.add_argument(
        "--max-failures", type=positive, default=5, metavar="N", help="end when so many trials in a row failed"
    )
    parser.add_argument(
        "--trial-timeout",
        type=seconds,
        metavar="TIME",
        help="a trial that takes longer has failed, in seconds or as 30m or 2h",
    )
    _add_json(parser, "the summary at the end, and nothing else to standard output,")
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
    _add_data(parser, recipe=True)
    _add_tasks(parser, recipe=True)
    _add_budget(parser, recipe=True)
    _add_training(parser)


def _add_json(parser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def _add_supernet(commands) -> None:
    parser = _command(commands, "supernet", "train one set of weights that all candidates of a recipe start from")
    parser.add_argument("--recipe", required=True, help="name (see the command list) or path of a .json")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the super-network")
    _add_data(parser, recipe=True)
    _add_budget(parser, recipe=True)
    _add_training(parser)


def _add_pretrain(commands) -> None:
    parser = _command(commands, "pretrain", "pretrain one encoder with masked language modelling")
    parser.add_argument(
        "--architecture", required=True, help="name of the zoo (see list), config.json, or folder of a model"
    )
    parser.add_argument("--output", required=True, help="folder for the checkpoint")
    parser.add_argument("--recipe", default="pretrain_cpu", help="budget: name (see list) or path of a .json")
    _add_data(parser, recipe=True)
    _add_budget(parser, recipe=True)
    _add_training(parser)


def _add_finetune(commands) -> None:
    parser = _command(commands, "finetune", "fine-tune an encoder on tasks and print the scores")
    parser.add_argument("--model", required=True, help="folder or Hub id of an encoder")
    parser.add_argument("--output", help="folder for one checkpoint a task; by default only scores are kept")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="examples per step")
    parser.add_argument("--learning-rate", type=positive_float, default=1e-4, metavar="N", help="peak learning rate")
    parser.add_argument("--max-length", type=positive, default=128, metavar="N", help="tokens per example")
    parser.add_argument(
        "--classifier-pooling", choices=("cls", "mean"), help="what sequence heads see (default: as in the checkpoint)"
    )
    parser.add_argument(
        "--pair-encoding",
        choices=("joint", "separate"),
        help="whether two texts are encoded in one sequence, or each alone and then compared, which small encoders "
        "learn sooner (default: as in the checkpoint)",
    )
    parser.add_argument(
        "--teacher-model",
        metavar="DIR",
        help="fine-tuned model whose logits are learnt beside the labels, or a folder with one a task",
    )
    parser.add_argument(
        "--temperature", type=positive_float, default=2.0, metavar="T", help="of the logits of --teacher-model"
    )
    parser.add_argument(
        "--label-weight", type=share, default=0.5, metavar="N", help="of the labels beside --teacher-model, 0 to 1"
    )
    parser.add_argument(
        "--class-weights", choices=("balanced",), help="make rare classes count as much as frequent ones"
    )
    parser.add_argument("--seeds", type=seeds, default=(0,), help="comma-separated; mean and spread are printed")
    parser.add_argument(
        "--sweep", type=whole, default=0, metavar="N", help="learning rates to try on each task first, 2e-5 to 5e-4"
    )
    parser.add_argument("--start-from", help="checkpoint fine-tuned on MNLI that RTE, MRPC and STS-B start from")
    _add_data(parser, recipe=False)
    _add_tasks(parser, recipe=False)
    _add_training(parser, one_seed=False)


def _add_evaluate(commands) -> None:
    parser = _command(commands, "evaluate", "say how well an encoder compares sentences without fine-tuning")
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of an encoder")
    parser.add_argument(
        "--tasks", type=names, default=("stsb",), help="comma-separated: stsb, or own pairs with numbers as labels"
    )
    parser.add_argument("--glue", default="nyu-mll/glue", help="Hub id or folder of GLUE")
    parser.add_argument("--max-length", type=positive, default=128, metavar="N", help="tokens per sentence")
    parser.add_argument("--output", metavar="FILE", help="JSON file for the scores")
    _add_training(parser, one_seed=False, trackers=False)


def _add_report(commands) -> None:
    parser = _command(commands, "report", "write tables and pictures of a run again")
    parser.add_argument("run_folder", metavar="RUN", help="run folder, for instance runs/quickstart")
    parser.add_argument("--storage", help="Optuna storage URL, where the run used one")
    _add_json(parser, "the summary, instead of the paths of what was written,")


def _add_export(commands) -> None:
    parser = _command(commands, "export", "write a checkpoint as ONNX or OpenVINO, for runtimes without PyTorch")
    parser.add_argument("folder", metavar="CHECKPOINT", help="folder or Hub id, for instance runs/quickstart/best")
    parser.add_argument("--output", metavar="DIR", help="folder for the files (default: CHECKPOINT/RUNTIME)")
    parser.add_argument("--runtime", default="onnx", help="onnx or openvino")
    parser.add_argument(
        "--precision",
        type=names,
        default=("float32", "int8"),
        help="comma-separated: float32, float16, int8 (weights beforehand, activations while it runs), int8-static "
        "(activations calibrated on --corpus)",
    )
    parser.add_argument("--encoder", action="store_true", help="without the head: last states instead of logits")
    parser.add_argument(
        "--calibration-texts", type=positive, default=128, metavar="N", help="so many texts of --corpus at the most"
    )
    _add_data(parser, recipe=False)


def _add_publish(commands) -> None:
    parser = _command(commands, "publish", "upload a checkpoint to the Hub")
    parser.add_argument("folder", metavar="FOLDER", help="checkpoint, for instance runs/quickstart/best")
    parser.add_argument("--repo-id", required=True, help="user/name on the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--push", action="store_true", help="really upload; without it only say what would be")
    parser.add_argument("--revision", metavar="BRANCH", help="of the repository, made where there is none")
    parser.add_argument("--replace", action="store_true", help="put it in the place of something else that is there")


def _add_pull(commands) -> None:
    parser = _command(commands, "pull", "download a checkpoint from the Hub, and check it")
    parser.add_argument("repo_id", metavar="USER/NAME", help="of the checkpoint on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit (default: the main branch)")
    parser.add_argument("--output", metavar="DIR", help="new folder for it (default: the cache of huggingface_hub)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check files, card, code, weights, tokenizer and golden outputs; ends with 1 where something is wrong",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let --verify also run the checkpoint's own Python files, in a process of their own",
    )
    _add_json(parser, "the result")


def _add_list(commands) -> None:
    parser = _command(commands, "list", "list recipes, samplers, tasks and named architectures")
    parser.add_argument(
        "what",
        nargs="?",
        choices=("recipes", "samplers", "pruners", "tasks", "operations", "architectures"),
        help="only these",
    )
    _add_json(parser, "the same")

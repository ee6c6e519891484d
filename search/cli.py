"""The command: its options. What each sub-command does is in `commands/`."""

import argparse
import codecs
import importlib
import io
import os
import sys
import unicodedata
from collections.abc import Sequence

from .errors import StartAnew, TrainingDiverged, UserError, without_secrets
from .option_groups import RECIPE, add_budget, add_costs, add_data, add_json, add_latency, add_tasks, add_training
from .option_values import names, positive, positive_float, seconds, seeds, share, tasks, whole
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
    except Exception as error:
        from .study.faults import is_users, reason

        if not is_users(error):  # then it is ours
            raise
        print(f"search: error: {reason(error)}", file=sys.stderr)  # a full disk, a missing permission
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
    add_json(parser, "the summary at the end, and nothing else to standard output,")
    add_costs(parser)
    add_latency(parser)
    add_data(parser, recipe=True)
    add_tasks(parser, recipe=True)
    add_budget(parser, recipe=True)
    add_training(parser)


def _add_supernet(commands) -> None:
    parser = _command(commands, "supernet", "train one set of weights that all candidates of a recipe start from")
    parser.add_argument("--recipe", required=True, help="name (see the command list) or path of a .json")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the super-network")
    parser.add_argument(
        "--sampling",
        choices=("random", "fair", "sandwich"),
        default="random",
        help="which members are trained in a step: a random one; in turn such that all operations come equally often; "
        "or the largest, the smallest and two random ones, each on a part of the batch",
    )
    add_data(parser, recipe=True)
    add_budget(parser, recipe=True)
    add_training(parser)


def _add_pretrain(commands) -> None:
    parser = _command(commands, "pretrain", "pretrain one encoder with masked language modelling")
    parser.add_argument(
        "--architecture", required=True, help="name of the zoo (see list), config.json, or folder of a model"
    )
    parser.add_argument("--output", required=True, help="folder for the checkpoint")
    parser.add_argument("--recipe", default="pretrain_cpu", help="budget: name (see list) or path of a .json")
    add_data(parser, recipe=True)
    add_budget(parser, recipe=True)
    add_training(parser)


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
    add_data(parser, recipe=False)
    add_tasks(parser, recipe=False)
    add_training(parser, one_seed=False)


def _add_evaluate(commands) -> None:
    parser = _command(commands, "evaluate", "say how well an encoder compares sentences without fine-tuning")
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of an encoder")
    parser.add_argument(
        "--tasks", type=tasks, default=("stsb",), help="comma-separated: stsb, or own pairs with numbers as labels"
    )
    parser.add_argument("--glue", default="nyu-mll/glue", help="Hub id or folder of GLUE")
    parser.add_argument("--max-length", type=positive, default=128, metavar="N", help="tokens per sentence")
    parser.add_argument("--output", metavar="FILE", help="JSON file for the scores")
    add_training(parser, one_seed=False, trackers=False)


def _add_report(commands) -> None:
    parser = _command(commands, "report", "write tables and pictures of a run again")
    parser.add_argument("run_folder", metavar="RUN", help="run folder, for instance runs/quickstart")
    parser.add_argument("--storage", help="Optuna storage URL, where the run used one")
    add_json(parser, "the summary, instead of the paths of what was written,")


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
    parser.add_argument(
        "--tasks",
        type=tasks,
        default=(),
        help="whose scores are compared with PyTorch's: GLUE tasks or own data as path[:text[+text2]:label] (default: "
        "GLUE tasks on the checkpoint's card)",
    )
    parser.add_argument("--validation", metavar="DATA", help="own data to validate with (default: a split)")
    parser.add_argument(
        "--task-type", choices=("classification", "regression"), help="of own data with numbers as labels"
    )
    parser.add_argument("--glue", default="nyu-mll/glue", help="Hub id or folder of GLUE")
    add_data(parser, recipe=False)


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
    add_json(parser, "the result")


def _add_list(commands) -> None:
    parser = _command(commands, "list", "list recipes, samplers, tasks and named architectures")
    parser.add_argument(
        "what",
        nargs="?",
        choices=("recipes", "samplers", "pruners", "tasks", "operations", "architectures"),
        help="only these",
    )
    add_json(parser, "the same")

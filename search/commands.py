"""What each sub-command does, as one readable story each: settle the options, load, work, say what came out."""

import dataclasses
import json
import logging
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import optuna
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, KwargsHandler, set_seed
from transformers import PreTrainedTokenizerBase

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, architecture, list_architectures, named_config
from flexibert.spec import OPERATIONS, parse_layers

from .corpus import Corpus, load_corpus, load_tokenizer, tokenized_blocks
from .cost import count_parameters, forward_flops, peak_flops_per_second
from .describe import head_group
from .errors import UserError
from .evaluator import LATENCY, SCORE, Evaluator, build_config, model_fields, pretraining_card
from .files import replace_file, replace_folder
from .finetuning import FinetuningBudget
from .finetuning_runs import finetune_tasks, summarize
from .hierarchy import levels
from .metrics import GLUE_TASKS, RULES, average
from .pretraining import pretrain
from .progress import RunProgress, duration
from .publish import push, save_checkpoint
from .recipe import Recipe, list_recipes, load_recipe
from .report import summarise, write_report
from .samplers import SAMPLERS, Feasible, create_sampler
from .search_space import Architecture
from .self_made_tasks import SELF_MADE_TASKS
from .study import Search, best_trial, finished, open_study
from .supernet import DESCRIPTION, SuperNetwork, random_member, save_supernet, weights_digest
from .supernet_evaluator import SuperNetworkEvaluator
from .tasks import load_tasks


def run(options) -> None:
    """Searches: the main job."""
    recipe = override(load_recipe(options.recipe), options)
    if recipe.space is None:
        raise UserError(f"recipe {options.recipe} has no space to search; it is for the command pretrain")
    create_sampler(recipe.sampler, recipe.space, seed=0)  # an unknown name shall not wait for the data
    if (options.evaluator == "supernet") != (options.supernet is not None):
        raise UserError("--evaluator supernet and --supernet DIR go together")
    if options.supernet is not None and recipe.transfer != "none":
        raise UserError("--transfer: candidates start either from a super-network or from trained encoders")
    if recipe.hierarchy:
        levels(recipe.space)  # nor a space without any
    folder = Path(options.runs) / (options.name or Path(options.recipe).stem)
    accelerator = start(options, folder)
    objectives = choose_objectives(options.objectives)
    study = None
    if accelerator.is_main_process:
        url = options.storage or f"sqlite:///{folder / 'study.db'}"
        study = open_study(url, folder.name, identity(recipe, options), objectives)
    with RunProgress(recipe.trials, accelerator.is_main_process) as progress:
        evaluator = build_evaluator(recipe, options, accelerator, progress, folder)
        evaluator.measure_latency = LATENCY in objectives or options.max_latency_ms is not None

        def after_trial(trial, trial_folder: Path) -> None:
            keep_best(study, trial, trial_folder, folder)
            evaluator.update(study)

        search = Search(
            study,
            recipe.space,
            recipe.sampler,
            evaluator,
            tuple(objectives),
            folder,
            options.seed,
            accelerator,
            progress,
            feasible=limits(evaluator, options),
            find_source=evaluator.find_source if recipe.transfer != "none" else None,
            after_trial=after_trial,
            hierarchy=recipe.hierarchy,
        )
        if accelerator.is_main_process:
            evaluator.update(study)
        search.run(recipe.trials)
    if accelerator.is_main_process:
        conclude(study, folder, finetuning_options(recipe, options))


def choose_objectives(names: tuple[str, ...]) -> dict[str, str]:
    """Metric -> direction; UserError for what cannot be an objective."""
    known = {SCORE: "maximize", "parameters": "minimize", LATENCY: "minimize"}
    for name in names:
        if name not in known:
            raise UserError(f"unknown objective {name!r}, known: {', '.join(known)}")
    if names[:1] != (SCORE,) or len(set(names)) != len(names):
        raise UserError(f"--objectives: expected {SCORE}, and after a comma any of parameters, {LATENCY}")
    return {name: known[name] for name in names}


def limits(evaluator: Evaluator, options) -> Feasible | None:
    """Whether an architecture keeps within --max-parameters and --max-latency-ms, each measured once."""
    if options.max_parameters is None and options.max_latency_ms is None:
        return None

    @cache
    def feasible(layers: Architecture) -> bool:
        config = evaluator.config(layers)
        if options.max_parameters is not None and count_parameters(config) > options.max_parameters:
            return False
        return options.max_latency_ms is None or evaluator.latency_ms(config) <= options.max_latency_ms

    return feasible


def start(options, folder: Path, *handlers: KwargsHandler) -> Accelerator:
    """Silences libraries, sets up processes and devices, and makes sure that the folder can be written."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    accelerator = Accelerator(mixed_precision=options.precision, kwargs_handlers=list(handlers))
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


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    changes["pretraining"] = dataclasses.replace(recipe.pretraining, **pretraining)
    if "epochs" in given:
        changes["finetuning"] = dataclasses.replace(recipe.finetuning, epochs=given["epochs"], max_steps=-1)
    return dataclasses.replace(recipe, **changes)


def identity(recipe: Recipe, options) -> dict[str, Any]:
    """What may not change while a run grows, because its trials would no longer be comparable."""
    data = json.loads(json.dumps(recipe.to_dict()))
    for free in ("description", "sampler", "trials"):
        del data[free]
    objective = {
        "objectives": list(options.objectives),
        "tasks": data.pop("tasks"),
        "glue": options.glue if recipe.tasks else None,
    }
    supernet = None if options.supernet is None else weights_digest(options.supernet)
    return {"space": data.pop("space"), "objective": objective, "seed": options.seed, "supernet": supernet, **data}


@dataclass(frozen=True)
class Data:
    """The text of a run, ready for training: blocks are (N, L) token ids."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    blocks: np.ndarray
    validation_blocks: np.ndarray


def load_data(recipe: Recipe, options, accelerator: Accelerator, progress: RunProgress, runs: Path) -> Data:
    """Loads text and tokenizer, first on the main process, which fills the caches, then on the others."""
    cache = runs / ".cache"
    length = recipe.pretraining.sequence_length
    with accelerator.main_process_first():
        corpus = load_corpus(recipe.corpus, recipe.corpus_config, options.text_column)
        tokenizer = load_tokenizer(recipe.tokenizer, corpus, cache, recipe.vocab_size)
        blocks = tokenized_blocks(corpus.train, tokenizer, length, cache)
        validation_blocks = tokenized_blocks(corpus.validation, tokenizer, length, cache)
    progress.say(f"{corpus.name}: {blocks.size:,} tokens to train on, vocabulary of {len(tokenizer):,}")
    return Data(corpus, tokenizer, blocks, validation_blocks)


def build_evaluator(
    recipe: Recipe, options, accelerator: Accelerator, progress: RunProgress, folder: Path
) -> Evaluator:
    """An evaluator with the recipe's data, tasks and budgets."""
    data = load_data(recipe, options, accelerator, progress, folder.parent)
    with accelerator.main_process_first():
        tasks = load_tasks(recipe.tasks, data.corpus, options.glue, recipe.max_train_examples)
    create = Evaluator
    if options.supernet is not None:
        supernet = {"space": recipe.space, "supernet": Path(options.supernet), "run": folder}
        create = partial(SuperNetworkEvaluator, **supernet)
    return create(
        corpus=data.corpus.name,
        model=recipe.model,
        tokenizer=data.tokenizer,
        blocks=data.blocks,
        validation_blocks=data.validation_blocks,
        tasks=tasks,
        pretraining=recipe.pretraining,
        finetuning=recipe.finetuning,
        transfer=recipe.transfer,
        seed=options.seed,
        accelerator=accelerator,
        progress=progress,
        glue=options.glue,
        search={
            "recipe": recipe.description,
            "sampler": recipe.sampler["name"],
            "evaluator": options.evaluator,
            "seed": options.seed,
        },
    )


def keep_best(study: optuna.Study, trial, trial_folder: Path, folder: Path) -> None:
    """Copies the checkpoint of a trial to best/ if no other is better."""
    if best_trial(study).number == trial.number:
        with replace_folder(folder / "best") as aside:
            shutil.copytree(trial_folder, aside, dirs_exist_ok=True)


def finetuning_options(recipe: Recipe, options) -> str:
    """What to add to the command finetune for the first task of a run, from where the run had it."""
    task = recipe.tasks[0] if recipe.tasks else "word_order"
    given = {"--tasks": task}
    if task in GLUE_TASKS:
        given["--glue"] = options.glue
    elif task in SELF_MADE_TASKS:
        given |= {"--corpus": recipe.corpus, "--corpus-config": recipe.corpus_config}
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in given.items() if value is not None)


def conclude(study: optuna.Study, folder: Path, finetuning: str) -> None:
    """Writes summary and report, and says what was found and what can be done with it."""
    replace_file(folder / "summary.json", json.dumps(summarise(study), indent=2, allow_nan=False))
    write_report(study, folder / "report")
    best = best_trial(study)
    if best is None:
        raise UserError("no trial finished, there is no encoder to keep")
    metrics = best.user_attrs["metrics"]
    trials = finished(study)
    seconds = sum(trial.duration.total_seconds() for trial in trials)
    checkpoint, python = folder / "best", interpreter()
    load = (
        f"from transformers import pipeline; fill = pipeline('fill-mask', '{checkpoint}', trust_remote_code=True); "
        "print(fill('The result is a [MASK].'.replace('[MASK]', fill.tokenizer.mask_token)))"
    )
    lines = [
        "",
        f"Found in {len(trials)} trials and {duration(seconds)} of training:",
        f"  trial {best.number}, architecture {best.user_attrs['fingerprint']}, score {metrics[SCORE]:.2f} %, "
        f"{metrics['parameters']:,} parameters",
        describe(parse_layers(best.user_attrs["layers"])),
        f"  checkpoint {checkpoint}, report {folder / 'report' / 'report.md'}",
        "",
        "Try next:",
        f'  load it       {python} -c "{load}"',
        f"  fine-tune it  {python} -m search finetune --model {checkpoint} {finetuning}",
        f"  publish it    {python} -m search publish {checkpoint} --repo-id YOUR_NAME/{folder.name} --push",
    ]
    print("\n".join(lines))


def describe(layers) -> str:
    """An encoder in a few lines for the screen."""
    return "\n".join(
        f"  layer {index}: width {layer.hidden_size}, {'; '.join(map(head_group, layer.operations))}, "
        f"feed-forward {' -> '.join(map(str, layer.feed_forward))}"
        for index, layer in enumerate(layers, 1)
    )


def interpreter() -> str:
    """What to type to get this Python."""
    if shutil.which("python") and Path(shutil.which("python")).resolve() == Path(sys.executable).resolve():
        return "python"
    return os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable


def pretrain_one(options) -> None:
    """Pretrains one architecture and leaves a checkpoint; the same command continues a killed run to the bit."""
    recipe = override(load_recipe(options.recipe), options)
    fields = load_architecture(options.architecture)
    output = Path(options.output)
    training = output.with_name(f"{output.name}.training")
    accelerator = start(options, output.parent)
    budget = recipe.pretraining
    with RunProgress(enabled=accelerator.is_main_process) as progress:
        data = load_data(recipe, options, accelerator, progress, output.parent)
        layers = fields.pop("layers")
        config = build_config(layers, data.tokenizer, budget.sequence_length, {**fields, **recipe.model})
        set_seed(options.seed)
        model = FlexiBertForMaskedLM(config)
        flops = 3 * forward_flops(config, budget.sequence_length, round(budget.mask_fraction * budget.sequence_length))
        flops_per_token = flops / budget.sequence_length
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        peak = accelerator.num_processes * peak_flops_per_second(accelerator.device, dtype)
        trackers = open_trackers(accelerator, options, training, dataclasses.asdict(budget))

        def show(done: int, loss: float, rate: float) -> None:
            progress.update(f"utilisation {100 * rate * flops_per_token / peak:.0f}%", done, budget.steps, loss, rate)
            if trackers:
                accelerator.log({"loss_nats": loss, "tokens_per_second": rate}, step=done)

        result = pretrain(
            model,
            data.blocks,
            data.validation_blocks,
            data.tokenizer,
            budget,
            options.seed,
            accelerator,
            training,
            show,
        )
        accelerator.end_training()
        weights = accelerator.get_state_dict(model)  # of all processes, where each holds a shard
        if accelerator.is_main_process:
            whole = FlexiBertForMaskedLM(config)
            whole.load_state_dict(weights)
            card = pretraining_card(output.name, data.corpus.name, budget, result, options.seed)
            save_checkpoint(whole, data.tokenizer, output, card)
            shutil.rmtree(training, ignore_errors=True)
            progress.say(
                f"{output}: {count_parameters(config):,} parameters, {budget.tokens:,} tokens in "
                f"{duration(result.seconds)}, validation loss {result.validation_loss:.3f} nats, "
                f"masked tokens right {100 * result.validation_accuracy:.1f} %"
            )


def train_supernet(options) -> None:
    """Trains one set of weights for all encoders of a space; the same command continues a killed run to the bit."""
    recipe = override(load_recipe(options.recipe), options)
    if recipe.space is None:
        raise UserError(f"recipe {options.recipe} has no space, so there is nothing to share weights in")
    output = Path(options.output)
    if output.exists() and not (output / DESCRIPTION).is_file() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"{output} exists and is no super-network; name a new folder or an empty one")
    training = output.with_name(f"{output.name}.training")
    # Every step trains other parameters, which data parallelism has to be told, and nothing stays to be compiled.
    accelerator = start(options, output.parent, DistributedDataParallelKwargs(find_unused_parameters=True))
    checkpoint_steps = recipe.pretraining.checkpoint_steps or max(1, recipe.pretraining.steps // 20)
    budget = dataclasses.replace(recipe.pretraining, checkpoint_steps=checkpoint_steps, compile=False)
    with RunProgress(enabled=accelerator.is_main_process) as progress:
        data = load_data(recipe, options, accelerator, progress, output.parent)
        longest = max(budget.sequence_length, recipe.finetuning.max_length)
        set_seed(options.seed)
        network = SuperNetwork(recipe.space, model_fields(data.tokenizer, longest, recipe.model))
        trackers = open_trackers(accelerator, options, training, dataclasses.asdict(budget))

        def show(done: int, loss: float, rate: float) -> None:
            progress.update("super-network", done, budget.steps, loss, rate)
            if trackers:
                accelerator.log({"loss_nats": loss, "tokens_per_second": rate}, step=done)

        def path(step: int) -> dict[str, Any]:
            return {"layers": random_member(recipe.space, options.seed, step)}

        result = pretrain(
            network,
            data.blocks,
            data.validation_blocks,
            data.tokenizer,
            budget,
            options.seed,
            accelerator,
            training,
            show,
            path,
        )
        accelerator.end_training()
        if accelerator.is_main_process:
            facts = {**dataclasses.asdict(budget), "corpus": data.corpus.name, "seed": options.seed}
            save_supernet(network, data.tokenizer, output, {"training": facts})
            shutil.rmtree(training, ignore_errors=True)
            progress.say(
                f"{output}: {sum(p.numel() for p in network.parameters()):,} parameters, {budget.tokens:,} tokens in "
                f"{duration(result.seconds)}, validation loss of a random member {result.validation_loss:.3f} nats"
            )
            progress.say(
                f"search with it: {interpreter()} -m search run --recipe {shlex.quote(options.recipe)} "
                f"--evaluator supernet --supernet {shlex.quote(str(output))}"
            )


STRUCTURE = (
    "embedding_size",
    "position_embedding_type",
    "rotary_base",
    "type_vocab_size",
    "project_embeddings",
    "hidden_act",
    "tie_word_embeddings",
)
"""Fields of a configuration that belong to an architecture, as the layers do, and not to a tokenizer."""


def load_architecture(name: str) -> dict[str, Any]:
    """Fields of the configuration of a named architecture, of a model's folder or config.json, or of a list of layers.

    Raises:
        UserError: There is nothing of this name, or the file holds no layers.
    """
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        if not path.is_file():
            config = named_config(name)
        else:
            data = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(data, list):
                return {"layers": parse_layers(data)}
            if not isinstance(data, dict) or "layers" not in data:
                raise ValueError("expected a list of layers, or an object with layers")
            config = FlexiBertConfig(**{key: data[key] for key in ("layers", *STRUCTURE) if key in data})
    except (ValueError, OSError) as error:
        raise UserError(f"architecture {name}: {error}") from None
    return {"layers": config.layer_specs, **{key: getattr(config, key) for key in STRUCTURE}}


def open_trackers(accelerator: Accelerator, options, folder: Path, settings: dict[str, Any]) -> bool:
    """Starts Accelerate's trackers, if any were asked for."""
    if options.report_to:
        accelerator.init_trackers(folder.name, config=settings)
    return bool(options.report_to)


def finetune(options) -> None:
    """Fine-tunes an encoder on tasks and prints their scores."""
    output = Path(options.output) if options.output else None
    accelerator = start(options, output or Path("."))
    budget = FinetuningBudget(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        precision={None: "auto", "no": "fp32"}.get(options.precision, options.precision),
    )
    trackers = {"report_to": list(options.report_to)} if options.report_to else {}
    with accelerator.main_process_first():
        corpus = load_corpus(options.corpus, options.corpus_config, options.text_column)
        tokenizer = load_tokenizer(options.tokenizer or options.model, corpus, Path("runs") / ".cache")
        tasks = load_tasks(options.tasks, corpus, options.glue, options.max_train_examples)
    results = finetune_tasks(
        options.model,
        tasks,
        tokenizer,
        budget,
        options.seeds,
        output,
        options.sweep,
        start_from=options.start_from,
        **trackers,
    )
    if accelerator.is_main_process:
        print_scores(results, output)


def print_scores(results: dict[str, list], output: Path | None) -> None:
    """A line per task and metric, mean and spread over seeds in percent, and the averages that can be named."""
    means = {}
    for task, runs in results.items():
        summary = summarize(runs)
        means[task] = {name: mean for name, (mean, _) in summary.items() if name != "score"}
        for name, (mean, spread) in summary.items():
            if name != "score":
                tail = f" +- {100 * spread:.2f} over {len(runs)} seeds" if len(runs) > 1 else ""
                print(f"{task:16} {name:24} {100 * mean:7.2f} %{tail}")
    for rule in RULES:
        value = average(means, rule)
        if value is not None:
            print(f"{'average':16} {rule:24} {100 * value:7.2f} %")
    if output is not None:
        rows = {task: [dataclasses.asdict(run) for run in runs] for task, runs in results.items()}
        replace_file(output / "scores.json", json.dumps(rows, indent=2))


def report(options) -> None:
    """Writes summary.json and report/ of a run again."""
    folder = Path(options.run_folder)
    url = options.storage or f"sqlite:///{folder / 'study.db'}"
    if options.storage is None and not (folder / "study.db").is_file():
        raise UserError(f"{folder} is no run folder: it has no study.db; for another storage give --storage")
    try:
        study = optuna.load_study(study_name=folder.resolve().name, storage=url)
    except KeyError:
        raise UserError(f"{url} holds no study named {folder.resolve().name!r}") from None
    replace_file(folder / "summary.json", json.dumps(summarise(study), indent=2, allow_nan=False))
    for path in write_report(study, folder / "report"):
        print(path)


def publish(options) -> None:
    """Uploads a checkpoint, or says what would be uploaded."""
    folder = Path(options.folder)
    if (folder / "best").is_dir() and not (folder / "config.json").exists():
        folder = folder / "best"
    print(push(folder, options.repo_id, private=options.private, dry_run=not options.push))


def list_all(options) -> None:
    """Prints what can be named."""
    tables = {
        "recipes": list_recipes(),
        "samplers": {name: text for name, (text, _) in SAMPLERS.items()},
        "tasks": {**dict.fromkeys(GLUE_TASKS, "GLUE"), **SELF_MADE_TASKS},
        "operations": {op: cls.__doc__.splitlines()[0] for op, cls in OPERATIONS.items()},
        "architectures": {name: f"{len(architecture(name))} layers" for name in list_architectures()},
    }
    for title, table in tables.items():
        if options.what in (None, title):
            print(f"{title}:")
            for name, text in table.items():
                print(f"  {name:32} {text}")

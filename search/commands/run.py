"""Searches: the main job."""

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
from accelerate import Accelerator

from flexibert import FlexiBertConfig
from flexibert.spec import Architecture, parse_layers

from ..artifacts.describe import head_group
from ..artifacts.page import write_page
from ..artifacts.report import write_report, write_summary
from ..cost import COSTS, SCORE, CostMeter, Limits, choose_objectives, limit_option
from ..data.cache import content_key, rows_key
from ..data.synthetic_tasks import SELF_MADE_TASKS
from ..data.tasks import Task, load_tasks
from ..errors import UserError
from ..evaluation.architectures import enqueue_known
from ..evaluation.cards import TrialCards
from ..evaluation.evaluator import Evaluator
from ..evaluation.first_weights import FirstWeights, FromNearest, FromScratch, FromSupernet
from ..evaluation.model_config import model_fields
from ..evaluation.supernet import weights_digest
from ..files import reported
from ..metrics import GLUE_TASKS
from ..progress import RunProgress, duration
from ..recipe import Recipe, load_recipe
from ..runtimes.bench import Bench
from ..runtimes.conditions import Conditions
from ..samplers import create_sampler
from ..samplers.trials import MEASURED
from ..study.pruning import PRUNERS, create_pruner
from ..study.run_folder import RunFolder
from ..study.search import Search
from ..study.storage import check_data, open_study, study_name
from ..study.trials import best_trial, finished
from ..study.workers import this_worker
from ..training.objectives import objective_weights, predicts
from .common import Data, interpreter, load_data, override, own_data, start


def main(options) -> None:
    """Opens the study, lets the search add trials to it, and says what came out."""
    recipe = override(load_recipe(options.recipe), options)
    if recipe.space is None:
        raise UserError(f"recipe {options.recipe} has no space to search; it is for the command pretrain")
    objectives = choose_objectives(options.objectives)
    new_sampler = partial(
        create_sampler,
        recipe.sampler,
        recipe.space,
        options.seed,
        hierarchy_trials=recipe.trials if recipe.hierarchy else None,
        objectives=len(objectives),
    )
    new_sampler()  # what is wrong with it shall not wait for the data
    pruner = create_pruner(recipe.pruner, recipe.pretraining.steps, len(objectives))
    if (options.evaluator == "supernet") != (options.supernet is not None):
        raise UserError("--evaluator supernet and --supernet DIR go together")
    if options.supernet is not None and recipe.transfer != "none":
        raise UserError("--transfer: candidates start either from a super-network or from trained encoders")
    folder = RunFolder(Path(options.runs) / (options.name or Path(options.recipe).stem))
    wanted = wanted_costs(options)
    if any(COSTS[name].by_bench for name in wanted):
        conditions(recipe, options).check(positions(recipe))
    accelerator = start(options, folder.path)
    study: optuna.Study | None = None
    if accelerator.is_main_process:
        url = options.storage or folder.storage
        name = study_name(folder, options.storage)
        old = _compared(Recipe("")) | {"latency": told(Conditions(length=recipe.pretraining.sequence_length))}
        same = {"identity": identity(recipe, options), "defaults": old}
        study = open_study(url, name, directions=objectives, timeout=options.storage_timeout, **same)
        folder.clean(study)
        study.pruner = pruner
        known, strange = enqueue_known(study, recipe.space, recipe.start_from)
    with ExitStack() as stack:
        progress = stack.enter_context(
            RunProgress(recipe.trials, accelerator.is_main_process, sys.stderr if options.json else None)
        )
        bench = Bench(conditions(recipe, options, accelerator), folder.latencies, "energy_mj" in wanted, progress.say)
        stack.callback(bench.close)
        meter = CostMeter(bench, wanted)
        evaluator = build_evaluator(recipe, options, accelerator, progress, folder, study, meter)
        weights = evaluator.first_weights

        def config(layers: Architecture) -> FlexiBertConfig:
            return FlexiBertConfig(**weights.fields, layers=layers)

        within = Limits(limits(options), meter)

        def after_trial() -> None:
            assert study is not None  # it is called on the main process
            folder.keep_best(study)
            if isinstance(weights, FromSupernet) and recipe.pretraining.steps:  # else trials have learnt nothing
                weights.write_back(study)

        search = Search(
            study,
            new_sampler(feasible=cache(lambda layers: within.may_hold(config(layers))) if within.limits else None),
            evaluator,
            folder,
            accelerator,
            progress,
            find_source=weights.find_source if isinstance(weights, FromNearest) else None,
            after_trial=after_trial,
            pruning=PRUNERS[recipe.pruner] if recipe.pruner else None,
            admit=(lambda layers: within.hold(config(layers))) if within.limits else None,
            notes=lambda layers: {MEASURED: how} if (how := meter.notes(config(layers))) else {},
        )
        if accelerator.is_main_process:
            if known or strange:
                progress.say(f"{known} known encoders come first, {strange} are not in the space")
            with reported(folder.best):
                after_trial()  # a worker may have been killed before it came to that
        search.run(
            recipe.trials,
            recipe.patience,
            max_failures=options.max_failures,
            hours=options.hours,
            trial_timeout=options.trial_timeout,
        )
    if study is not None:
        fills_masks = predicts(objective_weights(recipe.pretraining.objectives, recipe.teacher is not None))
        conclude(study, folder, next_commands(folder, finetuning_options(recipe, options), fills_masks), options.json)


def limits(options) -> dict[str, float]:
    """Cost -> what --max-... (or --min-...) admits, of those that were given."""
    given = {name: getattr(options, limit_option(name)) for name in COSTS}
    return {name: limit for name, limit in given.items() if limit is not None}


def wanted_costs(options) -> list[str]:
    """Costs that every trial shall have: objectives, what is limited, and latency where its conditions are given."""
    given = {"latency_ms"} if any(hasattr(options, f"latency_{name}") for name in CONDITIONS) else set()
    return sorted({*options.objectives[1:], *limits(options), *given})


CONDITIONS = ("runtime", "batch", "length", "threads", "repetitions")
"""Options --latency-..."""


def conditions(recipe: Recipe, options, accelerator: Accelerator | None = None) -> Conditions:
    """Under which latency and energy are measured."""
    given = {name: getattr(options, f"latency_{name}") for name in CONDITIONS if hasattr(options, f"latency_{name}")}
    chosen = Conditions(**{"length": recipe.pretraining.sequence_length, **given})
    if accelerator is None or not chosen.runtime.startswith("torch"):
        return chosen
    return dataclasses.replace(chosen, device=str(accelerator.device))


def told(conditions: Conditions) -> dict[str, Any]:
    """What makes latencies incomparable, as far as options say it."""
    return {name: getattr(conditions, name) for name in ("runtime", "batch", "length", "threads")}


def longest(recipe: Recipe) -> int:
    """Tokens of the longest sequence that training has."""
    return max(recipe.pretraining.sequence_length, recipe.finetuning.max_length if recipe.tasks else 0)


def positions(recipe: Recipe) -> int:
    """How long the texts of candidates may be."""
    return recipe.model.get("max_position_embeddings", longest(recipe))


def identity(recipe: Recipe, options) -> dict[str, Any]:
    """What may not change while a run grows, because its trials would no longer be comparable."""
    data = _compared(recipe)
    objective = {
        "objectives": list(options.objectives),
        "tasks": data.pop("tasks"),
        "glue": options.glue if recipe.tasks else None,
    }
    own = {name: getattr(options, name) for name in ("validation", "task_type", "encoding", "task_config")}
    objective |= {name: value for name, value in own.items() if value is not None}
    supernet = None if options.supernet is None else weights_digest(options.supernet)
    bounds = {limit_option(name): getattr(options, limit_option(name)) for name in COSTS}
    fixed = {"space": data.pop("space"), "objective": objective, "seed": options.seed, "supernet": supernet}
    fixed["latency"] = told(conditions(recipe, options))
    return {**fixed, **bounds, **data}


def _compared(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data without what may change while a run grows."""
    data = json.loads(json.dumps(recipe.to_dict()))
    return {name: data[name] for name in data if name not in FREE}


FREE = ("description", "sampler", "trials", "patience", "pruner", "start_from")
"""Parts of a recipe that leave trials comparable."""


def build_evaluator(
    recipe: Recipe,
    options,
    accelerator: Accelerator,
    progress: RunProgress,
    folder: RunFolder,
    study: optuna.Study | None,
    costs: CostMeter,
) -> Evaluator:
    """An evaluator with the recipe's data, tasks and budgets, once the study is known to be about these data."""
    data = load_data(recipe, options, accelerator, progress, folder.path.parent)
    with accelerator.main_process_first():
        tasks = load_tasks(
            recipe.tasks, data.corpus, options.glue, recipe.max_train_examples, options=own_data(options)
        )
    if study is not None:
        check_data(study, folder.name, digests(data, tasks))
    for task in tasks:
        if task.columns:
            progress.say(f"{task.name}: {task.columns}")
    search = {
        "recipe": recipe.description,
        "sampler": recipe.sampler["name"],
        "evaluator": options.evaluator,
        "seed": options.seed,
    }
    return Evaluator(
        first_weights=first_weights(recipe, options, data, folder),
        tokenizer=data.tokenizer,
        blocks=data.blocks,
        validation_blocks=data.validation_blocks,
        tasks=tasks,
        pretraining=recipe.pretraining,
        finetuning=recipe.finetuning,
        costs=costs,
        cards=TrialCards(data.corpus.name, tasks, recipe.finetuning, options.seed, search, data.teacher_name),
        seed=options.seed,
        accelerator=accelerator,
        progress=progress,
    )


def digests(data: Data, tasks: Sequence[Task]) -> dict[str, str]:
    """What a search learns from -> a digest of its content."""
    texts = {f"corpus ({split})": content_key(getattr(data.corpus, split)) for split in ("train", "validation")}
    return texts | {f"task {task.name}": rows_key(task.train, *task.validation.values()) for task in tasks}


def first_weights(recipe: Recipe, options, data: Data, folder: RunFolder) -> FirstWeights:
    """What candidates start from."""
    fields = model_fields(data.tokenizer, longest(recipe), recipe.model)
    if options.supernet is not None and recipe.space is not None:
        return FromSupernet(Path(options.supernet), folder, recipe.space, data.tokenizer, fields)
    if recipe.transfer != "none":
        return FromNearest(fields, recipe.transfer, options.seed)
    return FromScratch(fields, data.teacher if recipe.embeddings == "teacher" else None)


def finetuning_options(recipe: Recipe, options) -> str:
    """What to add to the command finetune for the first task of a run, from where the run had it."""
    task = recipe.tasks[0] if recipe.tasks else "word_order"
    given: dict[str, str | None] = {"--tasks": task}
    if task in GLUE_TASKS:
        given["--glue"] = options.glue
    elif task in SELF_MADE_TASKS:
        given |= {"--corpus": recipe.corpus, "--corpus-config": recipe.corpus_config}
    else:
        given |= {"--task-config": options.task_config, "--validation": options.validation}
        given |= {"--task-type": options.task_type}
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in given.items() if value is not None)


def conclude(study: optuna.Study, folder: RunFolder, commands: Sequence[str], as_json: bool) -> None:
    """Writes summary and report, and says what was found and, as commands, what can be done with it."""
    with reported(folder.report):
        summary = write_summary(study, folder)
        write_report(study, folder.report)
        write_page(study, folder.report)
    best = best_trial(study)
    if best is None:
        raise UserError("no trial finished, there is no encoder to keep")
    if as_json:
        print(summary)
        return
    metrics = best.user_attrs["metrics"]
    trials = finished(study)
    seconds = sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None)
    host = best.user_attrs["worker"]["host"]
    if folder.checkpoint(best) is None and host != this_worker()["host"]:
        print(f"the best of {len(trials)} trials, {best.number}, was trained on {host}; its checkpoint is there")
        return
    lines = [
        "",
        f"Found in {len(trials)} trials and {duration(seconds)} of training:",
        f"  trial {best.number}, architecture {best.user_attrs['fingerprint']}, score {metrics[SCORE]:.2f} %, "
        f"{metrics['parameters']:,} parameters",
        describe(parse_layers(best.user_attrs["layers"])),
        f"  checkpoint {folder.best}, report {folder.report / 'index.html'}",
        "",
        "Try next:",
        *commands,
    ]
    print("\n".join(lines))


def next_commands(folder: RunFolder, finetuning: str, fills_masks: bool = True) -> list[str]:
    """What can be done with the best encoder, to be pasted into a shell whatever its path holds.

    Args:
        finetuning: Options of the command finetune.
        fills_masks: Whether it learnt to.
    """
    checkpoint, python = shlex.quote(str(folder.best)), shlex.quote(interpreter())
    task, name = ("fill-mask", "fill") if fills_masks else ("feature-extraction", "states")
    use = (
        "print(fill('The result is a [MASK].'.replace('[MASK]', fill.tokenizer.mask_token)))"
        if fills_masks
        else "print(states('The result is clear.', return_tensors=True).shape)"
    )
    code = (
        "from transformers import pipeline; "
        f"{name} = pipeline('{task}', {str(folder.best)!r}, trust_remote_code=True); {use}"
    )
    # In double quotes, which reads better, as long as nothing in it means something to a shell there.
    load = shlex.quote(code) if set(code) & set('"\\$`!') else f'"{code}"'
    repository = re.sub(r"[^\w.-]+", "-", folder.name, flags=re.ASCII).strip("-.") or "encoder"
    return [
        f"  load it       {python} -c {load}",
        f"  fine-tune it  {python} -m search finetune --model {checkpoint} {finetuning}",
        f"  publish it    {python} -m search publish {checkpoint} --repo-id YOUR_NAME/{repository} --push",
    ]


def describe(layers) -> str:
    """An encoder in a few lines for the screen."""
    return "\n".join(
        f"  layer {index}: width {layer.hidden_size}, {'; '.join(map(head_group, layer.operations))}, "
        f"feed-forward {' -> '.join(map(str, layer.feed_forward))}"
        for index, layer in enumerate(layers, 1)
    )

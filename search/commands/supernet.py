"""Trains one set of weights for all encoders of a space."""

import dataclasses
import shlex
import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedDataParallelKwargs, set_seed

from ..errors import UserError
from ..evaluation.member_sampling import MEMBER_SAMPLING, with_parts
from ..evaluation.model_config import model_fields
from ..evaluation.supernet import DESCRIPTION, SuperNetwork, save_supernet
from ..files import check_place
from ..progress import RunProgress, duration
from ..recipe import load_recipe
from ..study.run_folder import training_folder
from ..training.pretraining import pretrain
from ..training.teacher import give_embeddings
from .common import interpreter, load_data, override, start, training_display


def main(options) -> None:
    """Trains one set of weights for all encoders of a space; the same command continues a killed run to the bit."""
    recipe = override(load_recipe(options.recipe), options)
    if recipe.space is None:
        raise UserError(f"recipe {options.recipe} has no space, so there is nothing to share weights in")
    output = Path(options.output)
    check_place(output, DESCRIPTION, "super-network")
    training = training_folder(output)
    # Every step trains other parameters, which data parallelism has to be told, and nothing stays to be compiled.
    uneven = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = start(options, output.parent, uneven)
    checkpoint_steps = recipe.pretraining.checkpoint_steps or max(1, recipe.pretraining.steps // 20)
    budget = dataclasses.replace(recipe.pretraining, checkpoint_steps=checkpoint_steps, compile=False)
    budget = with_parts(budget, options.sampling, accelerator.num_processes)
    member = MEMBER_SAMPLING[options.sampling]
    with RunProgress(enabled=accelerator.is_main_process) as progress:
        data = load_data(recipe, options, accelerator, progress, output.parent)
        longest = max(budget.sequence_length, recipe.finetuning.max_length)
        set_seed(options.seed)
        network = SuperNetwork(recipe.space, model_fields(data.tokenizer, longest, recipe.model))
        if data.teacher is not None and recipe.embeddings == "teacher":
            give_embeddings(network.word_embeddings.data, data.teacher, data.tokenizer.pad_token_id)
        show = training_display(
            progress, accelerator, options, f"{output.name}.logs", budget, lambda rate: "super-network"
        )

        def path(step: int, part: int) -> dict[str, Any]:
            return {"layers": member(network.space, options.seed, step, part)}

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
            identity={"sampling": options.sampling},
        )
        network.state_map = result.state_map
        accelerator.end_training()
        if accelerator.is_main_process:
            facts = {
                **dataclasses.asdict(budget),
                "corpus": data.corpus.name,
                "seed": options.seed,
                "sampling": options.sampling,
            }
            facts |= {"teacher": data.teacher_name} if data.teacher is not None else {}
            save_supernet(network, data.tokenizer, output, facts)
            shutil.rmtree(training, ignore_errors=True)
            progress.say(
                f"{output}: {sum(p.numel() for p in network.parameters()):,} parameters, {budget.tokens:,} tokens in "
                f"{duration(result.seconds)}, a member: {result.summary}"
            )
            progress.say(
                f"search with it: {interpreter()} -m search run --recipe {shlex.quote(options.recipe)} "
                f"--evaluator supernet --supernet {shlex.quote(str(output))}"
            )

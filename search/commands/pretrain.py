"""Pretrains one architecture and leaves a checkpoint."""

import shutil
from pathlib import Path

import torch
from accelerate.utils import set_seed

from flexibert import FlexiBertForMaskedLM

from ..artifacts.checkpoint import save_checkpoint
from ..cost import count_parameters, forward_flops, peak_flops_per_second
from ..evaluation.architectures import load_architecture
from ..evaluation.cards import pretraining_card
from ..evaluation.model_config import build_config
from ..files import check_place
from ..progress import RunProgress, duration
from ..recipe import load_recipe
from ..study.run_folder import training_folder
from ..training.objectives import objective_weights, predicts
from ..training.pretraining import pretrain
from ..training.teacher import give_embeddings
from .common import load_data, override, start, training_display


def main(options) -> None:
    """Pretrains one architecture and leaves a checkpoint; the same command continues a killed run to the bit."""
    recipe = override(load_recipe(options.recipe), options)
    fields = load_architecture(options.architecture)
    output = Path(options.output)
    check_place(output, "config.json", "checkpoint")  # now, not when all is trained
    training = training_folder(output)
    accelerator = start(options, output.parent)
    budget = recipe.pretraining
    with RunProgress(enabled=accelerator.is_main_process) as progress:
        data = load_data(recipe, options, accelerator, progress, output.parent)
        layers = fields.pop("layers")
        config = build_config(layers, data.tokenizer, budget.sequence_length, {**fields, **recipe.model})
        set_seed(options.seed)
        model = FlexiBertForMaskedLM(config)
        if data.teacher is not None and recipe.embeddings == "teacher":
            give_embeddings(model.model.embeddings.word_embeddings.weight, data.teacher, config.pad_token_id)
        weights = objective_weights(budget.objectives, data.teacher is not None)
        predictions = round(budget.mask_fraction * budget.sequence_length) if predicts(weights) else 0
        flops = 3 * forward_flops(config, budget.sequence_length, predictions)
        flops_per_token = flops / budget.sequence_length
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        peak = accelerator.num_processes * peak_flops_per_second(accelerator.device, dtype)

        def utilisation(rate: float) -> str:
            return f"utilisation {100 * rate * flops_per_token / peak:.0f}%"

        show = training_display(progress, accelerator, options, f"{output.name}.logs", budget, utilisation)
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
        state = accelerator.get_state_dict(model)  # of all processes, where each holds a shard
        if accelerator.is_main_process:
            whole = FlexiBertForMaskedLM(config)
            whole.load_state_dict(state)
            card = pretraining_card(output.name, data.corpus.name, budget, result, options.seed, data.teacher_name)
            save_checkpoint(whole, data.tokenizer, output, card, result.state_map)
            shutil.rmtree(training, ignore_errors=True)
            progress.say(
                f"{output}: {count_parameters(config):,} parameters, {budget.tokens:,} tokens in "
                f"{duration(result.seconds)}, {result.summary}"
            )

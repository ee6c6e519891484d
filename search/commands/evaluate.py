"""Says how well an encoder compares sentences without any fine-tuning."""

import json
from pathlib import Path

from ..data.tasks import load_tasks
from ..errors import UserError
from ..evaluation.zero_shot import SentenceEncoder, zero_shot
from ..files import replace_file, reported
from ..training.teacher import positions
from .common import start


def main(options) -> None:
    """Prints, for every task, the correlation of the cosine of two sentences with their label."""
    if not options.tasks:
        raise UserError("--tasks: expected at least one task")
    accelerator = start(options, Path(options.output).parent if options.output else Path("."))
    tasks = load_tasks(options.tasks, None, options.glue)
    encoder = SentenceEncoder(options.model, accelerator.device)
    most = positions(encoder.model)
    if options.max_length > most:
        raise UserError(f"max_length {options.max_length} is beyond the {most} positions of the model")
    for task in tasks if accelerator.is_main_process else ():
        if task.columns:
            print(f"{task.name}: {task.columns}", flush=True)
    scores = {task.name: zero_shot(encoder, task, options.max_length) for task in tasks}
    if not accelerator.is_main_process:
        return
    for name, splits in scores.items():
        for split, metrics in splits.items():
            for metric, value in metrics.items():
                print(f"{name:16} {split.removeprefix('validation_'):16} {metric:12} {100 * value:7.2f} %")
    if options.output:
        with reported(Path(options.output)):
            replace_file(Path(options.output), json.dumps(scores, indent=2))

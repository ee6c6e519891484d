"""Candidates that start from a super-network and, where they turn out well, improve it (AutoBERT-Zero's BIWS).

The paper leaves open which candidates write back, and when. Here a trial does so when its score is among the best
`WRITERS` of all trials finished until then, itself included; a later one replaces what an earlier one wrote. The
super-network that was given is never changed: the first write makes a copy in the run folder. What the copy holds is a
function of the study, so whoever continues a stopped run makes good what is missing.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from transformers import AutoTokenizer

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from flexibert.spec import Architecture

from ..errors import UserError
from ..space.search_space import SearchSpace
from ..study.run_folder import RunFolder
from ..study.trials import finished
from .evaluator import Evaluator
from .model_config import model_fields
from .supernet import DESCRIPTION, load_supernet, save_supernet


WRITERS = 5


@dataclasses.dataclass(kw_only=True)
class SuperNetworkEvaluator(Evaluator):
    """Evaluates like `Evaluator`, but candidates inherit their first weights.

    Attributes:
        space: What is searched.
        supernet: Folder of the super-network, see `supernet.save_supernet`.
        run: Folder of the run, which keeps a copy with what trials have written back.

    Raises:
        UserError: There is no super-network, or it does not suit the space, the tokenizer or the models.
    """

    space: SearchSpace
    supernet: Path
    run: RunFolder

    def __post_init__(self):
        network, _ = load_supernet(self.supernet)
        if network.space.to_dict() != self.space.to_dict():
            raise UserError(
                f"super-network {self.supernet} is of another space; give the recipe that it was trained with"
            )
        tokenizer = AutoTokenizer.from_pretrained(self.supernet)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"super-network {self.supernet} has another tokenizer than this run; give --tokenizer {self.supernet}"
            )
        wanted = model_fields(self.tokenizer, self.longest_sequence, self.model)
        length = network.fields["max_position_embeddings"]
        if length < wanted["max_position_embeddings"]:
            raise UserError(
                f"super-network {self.supernet} takes {length} tokens, this run has sequences of "
                f"{wanted['max_position_embeddings']}; give --sequence-length {length}"
            )
        wanted["max_position_embeddings"] = length
        changed = [name for name in {**wanted, **network.fields} if wanted.get(name) != network.fields.get(name)]
        if changed:
            raise UserError(f"super-network {self.supernet} has another {', '.join(changed)} than this run")
        self.fields = network.fields

    def config(self, layers: Architecture) -> FlexiBertConfig:
        return FlexiBertConfig(**self.fields, layers=layers)

    @property
    def current(self) -> Path:
        """The super-network with all that was written back so far."""
        copy = self.run.supernet
        return copy if (copy / DESCRIPTION).is_file() else self.supernet

    def first_model(self, layers: Architecture) -> FlexiBertForMaskedLM:
        """A candidate with the weights that it inherits."""
        network, _ = load_supernet(self.current)
        return network.extract(layers)

    def update(self, study: optuna.Study) -> None:
        """Writes back what good trials have and the copy has not, as far as their checkpoints are on this machine."""
        if self.pretraining.steps == 0:  # they have learnt nothing
            return
        network, description = load_supernet(self.current)
        done = description.get("written_back", [])
        new = []
        for trial in writers(finished(study)):
            folder = self.run.checkpoint(trial)
            if trial.number not in done and folder is not None:
                model = FlexiBertForMaskedLM.from_pretrained(folder)
                network.write_back(model.config.layer_specs, model)
                new.append(trial.number)
        if new:
            save_supernet(network, self.tokenizer, self.run.supernet, {**description, "written_back": done + new})


def writers(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were among the best when they finished, in that order."""
    ordered = sorted(trials, key=lambda trial: trial.datetime_complete)
    scores = [trial.values[0] for trial in ordered]
    return [
        trial
        for index, trial in enumerate(ordered)
        if sum(score > scores[index] for score in scores[:index]) < WRITERS
    ]

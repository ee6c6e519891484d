"""How a candidate gets its first weights: at random, from the trained encoder most like it, or from a super-network.

`FromSupernet` follows AutoBERT-Zero's BIWS: candidates that turn out well improve the super-network. The paper leaves
open which candidates write back, and when. Here a trial does so when its score is among the best `WRITERS` of all
trials finished until then, itself included; a later one replaces what an earlier one wrote. The super-network that was
given is never changed: the first write makes a copy in the run folder. What the copy holds is a function of the study,
so whoever continues a stopped run makes good what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import optuna
from optuna.trial import FrozenTrial
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from flexibert.spec import Architecture

from ..artifacts.sentence_files import read_state_map
from ..errors import UserError
from ..files import check_whole
from ..space.search_space import SearchSpace
from ..study.run_folder import RunFolder
from ..study.trials import finished
from ..training.objectives import StateMap
from ..training.teacher import Teacher, give_embeddings
from .supernet import DESCRIPTION, load_supernet, save_supernet
from .weight_transfer import Mode, overlap, transfer


WRITERS = 5


class FirstModel(NamedTuple):
    """A candidate before it is trained.

    Attributes:
        given: The share of its parameters that a trained encoder gave it unchanged; None where candidates take over
            nothing from one another.
        state_map: What it says a teacher's states through, where whatever gave it its weights had learnt that.
    """

    model: FlexiBertForMaskedLM
    given: float | None = None
    state_map: StateMap | None = None


class FirstWeights(Protocol):
    """Makes candidates.

    Attributes:
        fields: Of `FlexiBertConfig`, all but the layers.
    """

    @property
    def fields(self) -> Mapping[str, Any]: ...

    def model(self, layers: Architecture, source: Path | None = None) -> FirstModel:
        """A candidate; `source` is the checkpoint that `FromNearest.find_source` chose for it, if any."""


@dataclass(frozen=True)
class FromScratch:
    """Random weights.

    Attributes:
        teacher: Whose word embeddings, reduced, candidates start with, if any.
    """

    fields: Mapping[str, Any]
    teacher: Teacher | None = None

    def model(self, layers: Architecture, source: Path | None = None) -> FirstModel:
        model = FlexiBertForMaskedLM(FlexiBertConfig(**self.fields, layers=layers))
        if self.teacher is not None:
            give_embeddings(model.model.embeddings.word_embeddings.weight, self.teacher, model.config.pad_token_id)
        return FirstModel(model)


@dataclass(frozen=True)
class FromNearest:
    """Weights of the trained candidate that can give most, see `weight_transfer`.

    Attributes:
        mode: What becomes of weights that do not fit.
        seed: Of the random projections.
    """

    fields: Mapping[str, Any]
    mode: Mode
    seed: int

    def find_source(self, layers: Architecture, trained: Sequence[tuple[Architecture, Path]]) -> Path | None:
        """The checkpoint with the largest overlap, if any has one."""
        config = self._config(layers)
        overlaps = [(overlap(self._config(ancestor), config), folder) for ancestor, folder in trained]
        best, folder = max(overlaps, key=lambda pair: pair[0], default=(0.0, None))
        return folder if best > 0 else None

    def model(self, layers: Architecture, source: Path | None = None) -> FirstModel:
        model = FlexiBertForMaskedLM(self._config(layers))
        if source is None:
            return FirstModel(model, 0.0)
        try:
            check_whole(source)
        except UserError as error:  # of the candidates that start from it, not of the whole search
            raise RuntimeError(str(error)) from None
        config = FlexiBertConfig.from_pretrained(source)
        transfer(model, load_file(source / "model.safetensors"), config, self.mode, self.seed)
        return FirstModel(model, overlap(config, model.config), read_state_map(source))

    def _config(self, layers: Architecture) -> FlexiBertConfig:
        return FlexiBertConfig(**self.fields, layers=layers)


@dataclass
class FromSupernet:
    """Weights of a super-network.

    Attributes:
        folder: Of the super-network, see `supernet.save_supernet`.
        run: The run, which keeps a copy with what trials have written back.
        space: What is searched.
        tokenizer: Of the run.
        wanted: Fields that candidates would have without a super-network; its own may allow longer sequences.

    Raises:
        UserError: There is no super-network, or it does not suit the space, the tokenizer or the models.
    """

    folder: Path
    run: RunFolder
    space: SearchSpace
    tokenizer: PreTrainedTokenizerBase
    wanted: Mapping[str, Any]
    fields: Mapping[str, Any] = field(init=False)

    def __post_init__(self):
        network, _ = load_supernet(self.folder)
        if network.space.to_dict() != self.space.to_dict():
            raise UserError(
                f"super-network {self.folder} is of another space; give the recipe that it was trained with"
            )
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"super-network {self.folder} has another tokenizer than this run; give --tokenizer {self.folder}"
            )
        length = network.fields["max_position_embeddings"]
        if length < self.wanted["max_position_embeddings"]:
            raise UserError(
                f"super-network {self.folder} takes {length} tokens, this run has sequences of "
                f"{self.wanted['max_position_embeddings']}; give --sequence-length {length}"
            )
        wanted = {**self.wanted, "max_position_embeddings": length}
        changed = [name for name in {**wanted, **network.fields} if wanted.get(name) != network.fields.get(name)]
        if changed:
            raise UserError(f"super-network {self.folder} has another {', '.join(changed)} than this run")
        self.fields = network.fields

    @property
    def current(self) -> Path:
        """The super-network with all that was written back so far."""
        copy = self.run.supernet
        return copy if (copy / DESCRIPTION).is_file() else self.folder

    def model(self, layers: Architecture, source: Path | None = None) -> FirstModel:
        network, _ = load_supernet(self.current)
        return FirstModel(network.extract(layers), state_map=network.state_map)

    def write_back(self, study: optuna.Study) -> None:
        """Writes back what good trials have and the copy has not, as far as their checkpoints are on this machine."""
        network, description = load_supernet(self.current)
        done = description.written_back
        new = []
        for trial in writers(finished(study)):
            checkpoint = self.run.checkpoint(trial)
            if trial.number not in done and checkpoint is not None:
                check_whole(checkpoint)
                model = FlexiBertForMaskedLM.from_pretrained(checkpoint)
                network.write_back(model.config.layer_specs, model, read_state_map(checkpoint))
                new.append(trial.number)
        if new:
            save_supernet(network, self.tokenizer, self.run.supernet, description.training, [*done, *new])


def writers(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were among the best when they finished, in that order."""
    ordered = sorted(trials, key=lambda trial: trial.datetime_complete or datetime.max)
    scores = [trial.values[0] for trial in ordered]
    return [
        trial
        for index, trial in enumerate(ordered)
        if sum(score > scores[index] for score in scores[:index]) < WRITERS
    ]

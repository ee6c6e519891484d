"""Encoders by name: of the zoo, of a file, of a checkpoint, of an earlier run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from flexibert import FlexiBertConfig, named_config
from flexibert.spec import Architecture, fingerprint, parse_layers

from ..errors import UserError
from ..parsing import read_json
from ..samplers.trials import FINGERPRINT
from ..space.search_space import SearchSpace
from ..study.results import ranked, read_results
from ..study.run_folder import RunFolder
from ..study.storage import open_run


STRUCTURE = (
    "embedding_size",
    "position_embedding_type",
    "rotary_base",
    "type_vocab_size",
    "project_embeddings",
    "hidden_act",
    "classifier_pooling",
    "tie_word_embeddings",
)
"""Fields of a configuration that belong to an architecture, as the layers do, and not to a tokenizer."""

BEST_OF_A_RUN = 5
"""So many encoders of an earlier run are taken over."""

KNOWN = "known_architectures"
"""User attribute of a study: fingerprints of the encoders that were put before what the sampler proposes."""


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
            data = read_json(path, str(path))
            if isinstance(data, list):
                return {"layers": parse_layers(data)}
            if not isinstance(data, dict) or "layers" not in data:
                raise ValueError("expected a list of layers, or an object with layers")
            config = FlexiBertConfig(**{key: data[key] for key in ("layers", *STRUCTURE) if key in data})
    except (ValueError, OSError) as error:
        raise UserError(f"architecture {name}: {error}") from None
    return {"layers": config.layer_specs, **{key: getattr(config, key) for key in STRUCTURE}}


def load_architectures(name: str) -> list[Architecture]:
    """One encoder as `load_architecture` finds it, those of a JSON file with a list of them, or a run's best ones.

    Raises:
        UserError: There is nothing of this name, or no encoder in it.
    """
    path = Path(name)
    if RunFolder(path).study.is_file():
        study = open_run(RunFolder(path.resolve()))
        best = ranked(study, read_results(study))[:BEST_OF_A_RUN]
        if not best:
            raise UserError(f"run {name} has no finished trial to start from")
        return [result.layers for result in best]
    if path.is_file():
        data = read_json(path, str(path))
        if isinstance(data, list) and all(isinstance(item, list) for item in data):
            try:
                return [parse_layers(layers, f"architecture {name}: [{index}]") for index, layers in enumerate(data)]
            except ValueError as error:
                raise UserError(str(error)) from None
    return [load_architecture(name)["layers"]]


def enqueue_known(study: optuna.Study, space: SearchSpace, names: Sequence[str]) -> tuple[int, int]:
    """Puts encoders before what the sampler proposes, each once in the life of a study.

    Returns:
        How many were put there now, and how many are not in the space.

    Raises:
        UserError: A name means nothing, or none of all encoders is in the space.
    """
    wanted = {fingerprint(layers): layers for name in names for layers in load_architectures(name)}
    inside = {print_: layers for print_, layers in wanted.items() if layers in space}
    if wanted and not inside:
        raise UserError(f"--start-from: none of {len(wanted)} encoders is in the space")
    done = set(study.user_attrs.get(KNOWN, []))
    seen = {trial.user_attrs.get(FINGERPRINT) for trial in study.get_trials(deepcopy=False)}
    new = [print_ for print_ in inside if print_ not in done | seen]
    # First noted, then done: a worker that is killed in between leaves some out, none comes twice.
    study.set_user_attr(KNOWN, sorted(done | set(inside)))
    for print_ in new:
        study.enqueue_trial(space.parameters(inside[print_]))
    return len(new), len(wanted) - len(inside)

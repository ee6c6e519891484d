"""One set of weights for all encoders of a space: AutoBERT-Zero's bi-branch super-network, for any `SearchSpace`.

Every layer holds one branch for each operation of the space, at the largest width and depth (AutoBERT-Zero, arXiv
2107.07445: attention with four input projections, convolution with 65 taps; FlexiBERT's space: all its operations). A
branch has feed-forward network and norms of its own. A candidate takes from layer l of the branch that it needs

- the leading rows and columns of matrices that are larger than its own, and
- of kernels with fewer taps the taps in the middle, times a learned matrix that starts as the identity (Once-for-All,
  arXiv 1908.09791; there smaller kernels come out of the next larger one, here all come out of the largest).

Everything follows from one table, `_pieces`: where each parameter of a candidate lies. Running a candidate within the
super-network, cutting it out and writing it back read the same table, so they cannot disagree.

Notation: D width of a layer, H heads, d head size, K taps of a kernel.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import MaskedLMOutput

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from flexibert.modeling_flexibert import PROJECTIONS
from flexibert.spec import Architecture, LayerSpec, OperationSpec, SearchedAttention

from ..errors import UserError, first_line
from ..files import check_whole, replace_folder
from ..parsing import parse, read_json
from ..space.search_space import SearchSpace, operation_label
from ..training.objectives import StateMap, states_and_logits
from .model_config import check_fields


WEIGHTS, DESCRIPTION = "supernet.safetensors", "supernet.json"

STATE_MAP = "state_map."
"""What the names of the linear map onto a teacher's states begin with among the weights."""


@dataclass(frozen=True)
class Description:
    """What `DESCRIPTION` holds.

    Attributes:
        space: Whose members share the weights.
        fields: Of `FlexiBertConfig`, besides the layers.
        training: How the weights were trained, names with units.
        written_back: Numbers of the trials whose weights were written back, in that order.
    """

    space: SearchSpace
    fields: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    written_back: tuple[int, ...] = ()


LARGEST_GRAPH = (
    "keys = transpose(k)",
    "scores = matmul(q, keys)",
    "weights = softmax(scores)",
    "values = add(v, p)",
    "out = matmul(weights, values)",
)
"""A graph that needs all that a graph can need: every projection, and positions to score."""


@dataclass(frozen=True)
class Piece:
    """A part of a parameter of a candidate, and where the super-network holds it.

    Attributes:
        name: The shared parameter.
        shape: What is taken of it: the leading part, along `taps` the middle.
        taps: The dimension of a kernel's taps, if it has any.
    """

    name: str
    shape: tuple[int, ...]
    taps: int | None = None

    def region(self, shared: torch.Tensor) -> torch.Tensor:
        """The view of a shared parameter that belongs to the piece."""
        for dim, size in enumerate(self.shape):
            start = (shared.shape[dim] - size) // 2 if dim == self.taps else 0
            shared = shared.narrow(dim, start, size)
        return shared

    @property
    def transformation(self) -> str:
        """Name of the matrix between the middle of the largest kernel and a kernel of this size."""
        return f"{self.name.rpartition('.')[0]}.transformation_{self.size}"

    @property
    def size(self) -> int:
        """How many taps its kernels have."""
        return 0 if self.taps is None else self.shape[self.taps]


class SuperNetwork(nn.Module):
    """Shared weights of all members of a space.

    Args:
        space: Whose members can be run and cut out.
        fields: Fields of `FlexiBertConfig` besides the layers: vocabulary, positions, dropout.

    Attributes:
        state_map: From the widest states to a teacher's, if there was one; members take the leading columns.
    """

    def __init__(self, space: SearchSpace, fields: Mapping[str, Any]):
        super().__init__()
        self.state_map: StateMap | None = None
        self.space = space
        self.fields = dict(fields)
        self.shared = nn.ParameterDict()
        # A candidate runs on modules without weights. Few are kept: micro-batches and validation come back soon.
        self._skeleton = lru_cache(maxsize=4)(partial(self._build, device="meta"))
        kernels = []
        for piece, parameter in self._first_weights():
            key = _key(piece.name)
            if key not in self.shared or self.shared[key].numel() < parameter.numel():
                self.shared[key] = nn.Parameter(parameter.detach().clone().view(piece.shape))
            if piece.taps is not None:
                kernels.append(piece)
        for piece in kernels:
            if piece.size < self.shared[_key(piece.name)].shape[piece.taps]:
                self.shared[_key(piece.transformation)] = nn.Parameter(torch.eye(piece.size))

    def forward(self, layers: Architecture, **inputs) -> MaskedLMOutput:
        """Runs a member of the space with shared weights; `inputs` as of `FlexiBertForMaskedLM`."""
        skeleton = self._skeleton(tuple(layers)).train(self.training)
        return functional_call(skeleton, self.slices(layers), kwargs=inputs, tie_weights=True)

    @property
    def width(self) -> int:
        """The largest of a member's last state."""
        return max(self.space.hidden_size)

    def states_and_logits(self, inputs, positions, layers: Architecture):
        """As `objectives.states_and_logits` for a member of the space."""
        member = _StatesAndLogits(self._skeleton(tuple(layers)).train(self.training))
        parameters = {f"model.{name}": value for name, value in self.slices(layers).items()}
        return functional_call(member, parameters, (inputs, positions), tie_weights=True)

    @property
    def word_embeddings(self) -> nn.Parameter:
        """(V, E); members with narrower ones take the leading columns."""
        return self.shared[_key("model.embeddings.word_embeddings.weight")]

    def slices(self, layers: Architecture) -> dict[str, torch.Tensor]:
        """Every parameter of a member of the space as a differentiable function of the shared ones.

        Returns:
            Name of a parameter of `FlexiBertForMaskedLM` -> its value; tied ones once.

        Raises:
            ValueError: The architecture is not in the space.
        """
        parameters = {}
        for name, parameter in self._skeleton(tuple(layers)).named_parameters():
            pieces, dim = self._pieces(layers, name, parameter.shape)
            parts = [self._read(piece) for piece in pieces]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
            parameters[name] = whole.reshape(parameter.shape)
        return parameters

    @torch.no_grad()
    def extract(self, layers: Architecture) -> FlexiBertForMaskedLM:
        """A member of the space as an ordinary model with weights of its own and the same outputs."""
        slices = self.slices(layers)
        model = self._build(layers)
        for name, parameter in model.named_parameters():
            parameter.copy_(slices[name])
        return model

    @torch.no_grad()
    def write_back(self, layers: Architecture, model: FlexiBertForMaskedLM, state_map: StateMap | None = None) -> None:
        """Makes `extract(layers)` this trained model, with its map onto a teacher's states, if it has one; what it
        does not hold stays as it was.

        A smaller kernel goes back through its transformation: the middle of the largest kernel becomes the
        pseudo-inverse of the matrix times the kernel. The matrix itself and the outer taps stay as they were.
        """
        for name, parameter in model.named_parameters():
            pieces, dim = self._pieces(layers, name, parameter.shape)
            parts = [parameter]
            if len(pieces) > 1:
                parts = parameter.split([piece.shape[dim] for piece in pieces], dim)
            for piece, part in zip(pieces, parts):
                self._write(piece, part.reshape(piece.shape))
        if state_map is not None and self.state_map is not None:
            weight = self.state_map["weight"].clone()
            weight[:, : state_map["weight"].shape[1]] = state_map["weight"]
            self.state_map = {"weight": weight, "bias": state_map["bias"]}

    def config(self, layers: Architecture) -> FlexiBertConfig:
        """The configuration of a member; ValueError where the architecture is not in the space."""
        self.space.parameters(layers)
        return FlexiBertConfig(**self.fields, layers=layers)

    # --- construction ---------------------------------------------------------------------------------------------

    def _first_weights(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """What has to be held, from models of one large layer each; of equal names the largest counts."""
        # The most heads have the most kernels, the fewest heads have the most features each.
        few, many = min(self.space.num_heads), max(self.space.num_heads)
        frame = self._probe(self._largest_layer(self.space.operations[0], many), frame=True)
        for name, parameter in frame.named_parameters():
            if not name.startswith(_LAYER):
                yield Piece(name, tuple(parameter.shape)), parameter
        for index in range(max(self.space.num_layers)):
            for operation in self.space.operations:
                for heads in sorted({few, many}):
                    layer = self._largest_layer(operation, heads)
                    for name, parameter in self._probe(layer).model.layers[0].named_parameters():
                        [piece], _ = self._layer_pieces(index, layer, name, parameter.shape)
                        yield piece, parameter

    def _largest_layer(self, operation: Mapping[str, Any], heads: int) -> LayerSpec:
        if operation["op"] == SearchedAttention.op:
            group: OperationSpec = SearchedAttention(heads, LARGEST_GRAPH)
        else:
            group = OperationSpec.from_dict({**operation, "num_heads": heads})
        feed_forward = (max(self.space.feed_forward_size),) * max(self.space.feed_forward_depth)
        return LayerSpec(max(self.space.hidden_size), (group,), feed_forward, self.space.head_size)

    def _probe(self, layer: LayerSpec, frame: bool = False) -> FlexiBertForMaskedLM:
        """An encoder of this layer, whose first weights become shared ones; with a vocabulary only for the frame."""
        embedding_size = self.fields.get("embedding_size") or layer.hidden_size
        changes = {"layers": [layer], "embedding_size": embedding_size}
        if not frame:
            resizes = len({embedding_size, *self.space.hidden_size}) > 1
            changes["project_embeddings"] = resizes or self.fields.get("project_embeddings", False)
            changes["embedding_size"] = max(embedding_size, layer.hidden_size)
            changes["vocab_size"] = 1
            changes["pad_token_id"] = 0
        return FlexiBertForMaskedLM(FlexiBertConfig(**{**self.fields, **changes}))

    def _build(self, layers: Architecture, device: str | None = None) -> FlexiBertForMaskedLM:
        """A member whose parameters nobody has filled yet."""
        with no_init_weights(), torch.device(device or torch.get_default_device()):
            model = FlexiBertForMaskedLM(self.config(layers))
        model.tie_weights()
        return model

    # --- where the parameters of candidates lie -------------------------------------------------------------------

    def _pieces(self, layers: Architecture, name: str, shape: torch.Size) -> tuple[list[Piece], int]:
        """The pieces that a parameter of a candidate consists of, and along which dimension they are concatenated."""
        if not name.startswith(_LAYER):
            return [Piece(name, tuple(shape))], 0
        index, name = name.removeprefix(_LAYER).split(".", 1)
        return self._layer_pieces(int(index), layers[int(index)], name, shape)

    def _layer_pieces(self, index: int, layer: LayerSpec, name: str, shape: torch.Size) -> tuple[list[Piece], int]:
        """The same for a parameter of a layer. What a layer has once belongs to the branch of its first heads."""

        def piece(operation: OperationSpec, name: str, *shape: int, taps: int | None = None) -> Piece:
            return Piece(f"layers.{index}.{self._branch(operation)}.{name}", shape, taps)

        size = layer.resolved_head_size
        if name.startswith("mixer.projections."):
            positions = self.fields.get("position_embedding_type", "absolute")
            projection = next(key for key, module in PROJECTIONS.items() if module == name.split(".")[2])
            users = [group for group in layer.operations if projection in group.reads(positions)]
            return [piece(user, name, user.projected_heads * size, *shape[1:]) for user in users], 0
        if name == "mixer.output.weight":
            return [piece(group, name, shape[0], group.num_heads * size) for group in layer.operations], 1
        if name.startswith("mixer.operations."):
            _, _, group, parameter = name.split(".", 3)
            operation = layer.operations[int(group)]
            split, taps = operation.split_taps(parameter, shape)
            return [piece(operation, f"mixer.operations.{parameter}", *split, taps=taps)], 0
        if name.startswith("mixer.distance_embedding."):
            return [piece(next(group for group in layer.operations if group.scores_positions), name, *shape)], 0
        return [piece(layer.operations[0], name, *shape)], 0

    def _branch(self, operation: OperationSpec) -> str:
        """Name of the branch that holds an operation: the operation without kernel size and searched graph.

        Heads of one layer that convolve with kernels of several sizes would lie upon each other, so in spaces of mixed
        heads every size has a branch of its own.
        """
        data = operation.to_dict()
        if self.space.graph_space is not None:
            data.pop("nodes", None)
        if not self.space.mixed_heads:
            data.pop("kernel_size", None)
        return operation_label(data)

    def _read(self, piece: Piece) -> torch.Tensor:
        part, matrix = piece.region(self.shared[_key(piece.name)]), self._transformation(piece)
        return part if matrix is None or piece.taps is None else _transform(part, matrix, piece.taps)

    def _write(self, piece: Piece, value: torch.Tensor) -> None:
        matrix = self._transformation(piece)
        if matrix is not None and piece.taps is not None:
            value = _transform(value, torch.linalg.pinv(matrix.double()).to(value.dtype), piece.taps)
        piece.region(self.shared[_key(piece.name)]).copy_(value)

    def _transformation(self, piece: Piece) -> torch.Tensor | None:
        """The matrix of a kernel that is not the largest."""
        return None if piece.taps is None else self.shared.get(_key(piece.transformation), None)


class _StatesAndLogits(nn.Module):
    """The function as a module, because only a module can be called with other weights."""

    def __init__(self, model: FlexiBertForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, inputs, positions):
        return states_and_logits(self.model, inputs, positions)


_LAYER = "model.layers."


def _key(name: str) -> str:
    """A name that torch takes for a parameter."""
    return name.replace(".", "/")


def _transform(kernels: torch.Tensor, matrix: torch.Tensor, taps: int) -> torch.Tensor:
    """The matrix (K, K) times the taps (dimension `taps`) of all kernels."""
    return torch.tensordot(matrix, kernels, dims=([1], [taps])).movedim(0, taps)


# --- files --------------------------------------------------------------------------------------------------------


def save_supernet(
    network: SuperNetwork, tokenizer, folder: Path, training: Mapping[str, Any], written_back: Sequence[int] = ()
) -> None:
    """Writes a folder that `load_supernet` reads, all of it or nothing; for the rest see `Description`."""
    description = {
        "training": training,
        "written_back": list(written_back),
        "space": network.space.to_dict(),
        "fields": network.fields,
    }
    with replace_folder(folder) as aside:
        state_map = {f"{STATE_MAP}{name}": tensor.contiguous() for name, tensor in (network.state_map or {}).items()}
        save_file({**network.state_dict(), **state_map}, aside / WEIGHTS)
        tokenizer.save_pretrained(aside)
        (aside / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")


def load_supernet(folder: Path) -> tuple[SuperNetwork, Description]:
    """A super-network on the CPU and its description; UserError where the folder holds none."""
    folder = Path(folder)
    check_whole(folder)
    title = f"{folder} is no super-network: {DESCRIPTION}"
    description = parse(Description, read_json(folder / DESCRIPTION, title), title)
    check_fields(description.fields, f"{title}: fields")
    try:
        state = load_file(folder / WEIGHTS)
        with torch.device("meta"):
            network = SuperNetwork(description.space, description.fields)
        state_map = {name: state.pop(f"{STATE_MAP}{name}") for name in ("weight", "bias") if STATE_MAP + name in state}
        network.load_state_dict(state, assign=True)
        network.state_map = state_map or None
    except (OSError, SafetensorError, RuntimeError) as error:  # torch says in many lines which weights are missing
        raise UserError(f"{folder} is no super-network: {WEIGHTS}: {first_line(error)}") from None
    return network, description


def weights_digest(folder: Path) -> str:
    """Identity of the weights in a folder; UserError where it holds none."""
    try:
        return hashlib.sha256((Path(folder) / WEIGHTS).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"{folder} is no super-network: {error}") from None

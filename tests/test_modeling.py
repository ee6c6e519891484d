"""The contract of a transformers model, for every spec and head: see also tests/official."""

import copy

import pytest
import torch
from conftest import EVERY_OPERATION, SPECS

import flexibert
from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel, operations
from flexibert.configuration_flexibert import AUTO_MAP


HEADS = [getattr(flexibert, name) for name in dict.fromkeys(name.split(".")[1] for name in AUTO_MAP.values())]
HEADS.remove(FlexiBertConfig)
POSITIONS = ["absolute", "relative_key", "relative_key_query", "rotary"]
VOCAB_SIZE, BATCH, LENGTH, CHOICES = 64, 3, 11, 2

every_spec = pytest.mark.parametrize("spec", SPECS)
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__.removeprefix("FlexiBert"))
every_position = pytest.mark.parametrize("positions", POSITIONS)


def make_config(layers, **fields) -> FlexiBertConfig:
    """A small configuration without dropout; `layers` may be a name of SPECS."""
    layers = SPECS[layers] if isinstance(layers, str) else layers
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 40}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return FlexiBertConfig(layers=layers, **{**sizes, **dropout, **fields})


def make_model(head, layers, **fields):
    """A model in evaluation mode whose parameters, norms and biases included, are all random."""
    torch.manual_seed(0)
    model = head(make_config(layers, **fields)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_inputs(head=FlexiBertModel, labels=False, padding=False) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shape = (BATCH, CHOICES, LENGTH) if "MultipleChoice" in head.__name__ else (BATCH, LENGTH)
    inputs = {"input_ids": torch.randint(1, VOCAB_SIZE, shape), "token_type_ids": torch.randint(0, 2, shape)}
    if padding:
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.long)
        inputs["attention_mask"][1, ..., LENGTH - 4 :] = 0
    if labels and "QuestionAnswering" in head.__name__:
        inputs |= {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([4, 5, 6])}
    elif labels:
        per_token = "MaskedLM" in head.__name__ or "TokenClassification" in head.__name__
        inputs["labels"] = torch.randint(0, 2, shape if per_token else (BATCH,))
    return inputs


def gradients(model) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_models_of_these_tests_are_small():
    for layers in (*SPECS.values(), EVERY_OPERATION):
        assert FlexiBertForMaskedLM(make_config(layers)).num_parameters() < 100_000


# --- weights ------------------------------------------------------------------------------------------------------


@every_spec
@every_head
def test_missing_weights_are_initialised(spec, head):
    """`from_pretrained` without any weights makes on the meta device what `__init__` makes, each kind of parameter."""
    config = make_config(spec, position_embedding_type="relative_key", initializer_range=0.05)
    torch.manual_seed(0)
    expected = head(config).state_dict()
    loaded = head.from_pretrained(None, config=copy.deepcopy(config), state_dict={}).state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert tensor.device.type == "cpu" and torch.isfinite(tensor).all(), name
        torch.testing.assert_close(tensor.mean(), expected[name].mean(), atol=0.05, rtol=0, msg=name)
        torch.testing.assert_close(
            tensor.std(correction=0), expected[name].std(correction=0), atol=0.02, rtol=0.4, msg=name
        )


@every_spec
def test_initialisation_on_the_meta_device(spec):
    with torch.device("meta"):
        model = FlexiBertForMaskedLM(make_config(spec, position_embedding_type="relative_key"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for name, module in model.named_modules():
        plain = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not plain, f"{name} keeps tensors that are neither parameters nor buffers: {plain}"


@every_spec
@every_head
def test_save_and_load(spec, head, tmp_path):
    model, inputs = make_model(head, spec), make_inputs(head, padding=True)
    model.save_pretrained(tmp_path / "first")
    loaded = head.from_pretrained(tmp_path / "first").eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(**inputs).to_tuple(), model(**inputs).to_tuple(), atol=1e-6, rtol=1e-6)
    loaded.save_pretrained(tmp_path / "second")
    assert sorted(p.name for p in (tmp_path / "first").iterdir()) == sorted(
        p.name for p in (tmp_path / "second").iterdir()
    )


@pytest.mark.parametrize("spec", ["mixed_heads", "widening", "graph"])
def test_base_and_heads_share_checkpoints(spec, tmp_path):
    base = make_model(FlexiBertModel, spec)
    base.save_pretrained(tmp_path / "base")
    for head in HEADS[1:]:
        model, info = head.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert not any(key.startswith("model.") for key in info["missing_keys"])
        torch.testing.assert_close(model.model(**make_inputs())[0], base(**make_inputs())[0])
        model.save_pretrained(tmp_path / head.__name__)
        back = FlexiBertModel.from_pretrained(tmp_path / head.__name__).eval()
        torch.testing.assert_close(back(**make_inputs())[0], base(**make_inputs())[0])


@pytest.mark.parametrize("spec", ["homogeneous", "widening", "narrowing"])
def test_tied_and_untied_embeddings(spec, tmp_path):
    model = make_model(FlexiBertForMaskedLM, spec)
    assert model.lm_head.weight is model.model.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path / "tied")
    loaded = FlexiBertForMaskedLM.from_pretrained(tmp_path / "tied").eval()
    assert loaded.lm_head.weight is loaded.model.embeddings.word_embeddings.weight

    model = make_model(FlexiBertForMaskedLM, spec, tie_word_embeddings=False)
    assert model.lm_head.in_features == model.config.hidden_size
    model.save_pretrained(tmp_path / "untied")
    loaded = FlexiBertForMaskedLM.from_pretrained(tmp_path / "untied").eval()
    assert torch.equal(loaded(**make_inputs()).logits, model(**make_inputs()).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_resize_token_embeddings(tied, tmp_path):
    model = make_model(FlexiBertForMaskedLM, "widening", tie_word_embeddings=tied)
    before = model(**make_inputs()).logits
    model.resize_token_embeddings(VOCAB_SIZE + 9)
    after = model(**make_inputs()).logits
    assert model.config.vocab_size == model.lm_head.out_features == len(model.lm_head.bias) == VOCAB_SIZE + 9
    torch.testing.assert_close(after[..., :VOCAB_SIZE], before)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(FlexiBertForMaskedLM.from_pretrained(tmp_path).eval()(**make_inputs()).logits, after)


# --- outputs ------------------------------------------------------------------------------------------------------


@every_spec
@every_head
def test_outputs_and_loss(spec, head):
    model, inputs = make_model(head, spec), make_inputs(head, labels=True, padding=True)
    output = model(**inputs)
    for from_tuple, from_dict in zip(model(**inputs, return_dict=False), output.to_tuple()):
        assert torch.equal(from_tuple, from_dict)
    if head is not FlexiBertModel:
        assert output.loss.ndim == 0 and torch.isfinite(output.loss)


@every_spec
def test_input_embeddings_instead_of_ids(spec):
    model, inputs = make_model(FlexiBertModel, spec), make_inputs(padding=True)
    expected = model(**inputs).last_hidden_state
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeddings, **inputs).last_hidden_state, expected)


@every_spec
def test_hidden_states_have_the_widths_of_their_layers(spec):
    model = make_model(FlexiBertForMaskedLM, spec)
    specs = model.config.layer_specs
    output = model(**make_inputs(), output_hidden_states=True)
    widths = [states.shape[-1] for states in output.hidden_states]
    assert widths == [model.config.embedding_size, *(layer.hidden_size for layer in specs)]
    assert torch.equal(model.model(**make_inputs()).last_hidden_state, output.hidden_states[-1])


@every_spec
@pytest.mark.parametrize("fields", [{}, {"output_hidden_states": True}, {"unpad_inputs": True}], ids=str)
def test_predictions_at_positions_are_those_of_the_whole(spec, fields):
    """Although the last layer's output projection and feed-forward network run at these positions only."""
    model = make_model(FlexiBertForMaskedLM, spec, **fields)
    inputs, positions = make_inputs(padding=True), torch.tensor([0, 5, LENGTH + 2, 2 * LENGTH])
    some, whole = model(**inputs, prediction_positions=positions), model(**inputs)
    expected = whole.logits.flatten(0, 1)[positions]
    torch.testing.assert_close(some.logits, expected)
    weights = model.model.layers[0].mixer_norm.weight
    gradients = [torch.autograd.grad(logits.square().sum(), weights)[0] for logits in (some.logits, expected)]
    torch.testing.assert_close(*gradients)
    if some.hidden_states:
        torch.testing.assert_close(some.hidden_states[:-1], whole.hidden_states[:-1])


def test_sparse_prediction_counts_labelled_tokens_only():
    model = make_model(FlexiBertForMaskedLM, "homogeneous", sparse_prediction=True)
    inputs = make_inputs()
    labels = torch.full((BATCH, LENGTH), -100)
    labels[0, 3], labels[2, 10] = 7, 9
    sparse = model(**inputs, labels=labels)
    model.config.sparse_prediction = False
    whole = model(**inputs, labels=labels)
    torch.testing.assert_close(sparse.logits, whole.logits[[0, 2], [3, 10]])
    torch.testing.assert_close(sparse.loss, whole.loss)


def test_the_base_model_gives_chosen_states():
    for pooling in (True, False):
        model = make_model(FlexiBertModel, "mixed_heads").eval()
        model.pooler = model.pooler if pooling else None
        inputs, positions = make_inputs(), torch.tensor([4, LENGTH])
        some, whole = model(**inputs, output_positions=positions), model(**inputs)
        torch.testing.assert_close(some.last_hidden_state, whole.last_hidden_state.flatten(0, 1)[positions])
        torch.testing.assert_close(some.pooler_output, whole.pooler_output)


def test_attentions_are_those_of_the_heads_that_attend():
    model = make_model(FlexiBertModel, EVERY_OPERATION, attn_implementation="eager")
    (weights,) = model(**make_inputs(padding=True), output_attentions=True).attentions
    assert weights.shape == (BATCH, 4, LENGTH, LENGTH)  # two softmax groups, half of the mixed one, one graph
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, 4, LENGTH))
    assert (weights[1, ..., LENGTH - 4 :] == 0).all()


def test_bad_inputs_are_refused():
    model, inputs = make_model(FlexiBertModel, "homogeneous"), make_inputs()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(inputs["input_ids"], inputs_embeds=torch.zeros(BATCH, LENGTH, 32))
    with pytest.raises(ValueError, match="sequence length 41 exceeds max_position_embeddings 40"):
        model(torch.ones(1, 41, dtype=torch.long))


# --- invariances --------------------------------------------------------------------------------------------------


@every_spec
def test_rows_of_a_batch_are_independent(spec):
    model, inputs = make_model(FlexiBertModel, spec), make_inputs(padding=True)
    together = model(**inputs).last_hidden_state
    for row in range(BATCH):
        alone = model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()}).last_hidden_state
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [*SPECS, "every_operation"])
@every_position
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_padding_never_changes_a_result(spec, positions, side, backend):
    layers = EVERY_OPERATION if spec == "every_operation" else SPECS[spec]
    model = make_model(FlexiBertModel, layers, position_embedding_type=positions, attn_implementation=backend)
    lengths = [1, 6, 11]
    torch.manual_seed(2)
    padded = torch.randint(0, VOCAB_SIZE, (len(lengths), 16))
    mask = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        mask[row, 16 - length :] = 1
    if side == "right":
        mask = mask.flip(-1)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    together = model(padded, mask, position_ids=position_ids).last_hidden_state
    assert torch.isfinite(together).all()
    for row in range(len(lengths)):
        real = mask[row].bool()
        alone = model(padded[row : row + 1, real]).last_hidden_state[0]
        torch.testing.assert_close(together[row, real], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", ["fourier", "cosine", "dynamic_convolution"])
def test_padding_takes_part_on_request(spec):
    """`mix_padding` is the references' behaviour: the mask makes no difference to transforms and convolutions."""
    layers = [
        {**layer, "operations": [{**operation, "mix_padding": True} for operation in layer["operations"]]}
        for layer in SPECS[spec]
        if not any(operation.get("mixed_attention") for operation in layer["operations"])
    ]
    model, inputs = make_model(FlexiBertModel, layers), make_inputs(padding=True)
    masked = model(**inputs).last_hidden_state
    inputs.pop("attention_mask")
    assert torch.equal(model(**inputs).last_hidden_state, masked)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("unpad_inputs", [False, True])
def test_a_row_of_padding_alone_stays_finite(backend, unpad_inputs):
    fields = {"attn_implementation": backend, "unpad_inputs": unpad_inputs}
    model = make_model(FlexiBertModel, EVERY_OPERATION, classifier_pooling="mean", **fields)
    inputs = make_inputs(padding=True)
    inputs["attention_mask"][1] = 0
    outputs = model(**inputs)
    assert torch.isfinite(outputs.last_hidden_state).all() and torch.isfinite(outputs.pooler_output).all()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("side", ["left", "right", "none", "no mask"])
@pytest.mark.parametrize("unpad_inputs", [False, True])
def test_pooling_sees_real_tokens_and_no_padding(pooling, side, unpad_inputs):
    """ "cls" takes the first of them, wherever it stands, "mean" takes all."""
    fields = {"classifier_pooling": pooling, "unpad_inputs": unpad_inputs}
    model = make_model(FlexiBertModel, EVERY_OPERATION, **fields)
    inputs = make_inputs(padding=True)
    if side == "left":
        inputs = {name: tensor.flip(-1) for name, tensor in inputs.items()}
    elif side != "right":
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    mask = inputs["attention_mask"]
    inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if side == "no mask":
        del inputs["attention_mask"]
    pooled = model(**inputs).pooler_output
    for row, real in enumerate(mask.bool()):
        alone = {name: tensor[row : row + 1, real] for name, tensor in inputs.items()}
        states = model(**alone).last_hidden_state[0]
        expected = torch.tanh(model.pooler(states[0] if pooling == "cls" else sum(states) / len(states)))
        torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**alone).pooler_output[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unpad_inputs", [False, True])
def test_rotary_angles_are_made_once_for_all_layers(unpad_inputs, monkeypatch):
    made = []
    angles = operations.rotary_angles
    monkeypatch.setattr(operations, "rotary_angles", lambda *args: made.append(args[1]) or angles(*args))
    layers = [*SPECS["homogeneous"], *SPECS["graph"], *SPECS["multiplicative"]]
    model = make_model(FlexiBertModel, layers, position_embedding_type="rotary", unpad_inputs=unpad_inputs)
    inputs = make_inputs(padding=unpad_inputs)
    model(**inputs)
    assert made == [4] * (BATCH if unpad_inputs else 1)  # heads of 8 features; unpadded, one row is one group here
    widened = [*layers, {**SPECS["homogeneous"][0], "head_size": 12}]
    make_model(FlexiBertModel, widened, position_embedding_type="rotary")(**make_inputs())
    assert made[-2:] == [4, 6]


def test_a_mask_of_pairs_reaches_softmax_attention_and_is_refused_elsewhere():
    inputs = make_inputs(padding=True)
    pairs = inputs["attention_mask"][:, None, None, :].bool().expand(-1, 1, inputs["input_ids"].shape[1], -1)
    model = make_model(FlexiBertModel, SPECS["homogeneous"])
    expected = model(**inputs).last_hidden_state
    actual = model(**{**inputs, "attention_mask": pairs}).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"attention_mask: \(batch, length\) is expected"):
        make_model(FlexiBertModel, SPECS["fourier"])(**{**inputs, "attention_mask": pairs})
    with pytest.raises(ValueError, match=r"expected or \(batch, 1, length, length\)"):
        model(**{**inputs, "attention_mask": pairs[:, 0]})


@pytest.mark.parametrize("spec", ["homogeneous", "fourier", "cosine", "graph"])
@every_position
def test_splitting_a_group_changes_nothing(spec, positions):
    """Groups of four heads equal two groups of two with the same parameters."""
    halves = [
        {
            **layer,
            "operations": [
                {**operation, "num_heads": operation["num_heads"] // 2}
                for operation in layer["operations"]
                for _ in range(2)
            ],
        }
        for layer in SPECS[spec]
    ]
    whole = make_model(FlexiBertModel, spec, position_embedding_type=positions)
    split = make_model(FlexiBertModel, halves, position_embedding_type=positions)
    split.load_state_dict(whole.state_dict())
    inputs = make_inputs(padding=True)
    torch.testing.assert_close(split(**inputs)[0], whole(**inputs)[0], atol=1e-6, rtol=1e-5)


@every_spec
@every_position
def test_attention_backends_agree(spec, positions):
    model, inputs = make_model(FlexiBertModel, spec, position_embedding_type=positions), make_inputs(padding=True)
    model.set_attn_implementation("sdpa")
    fused = model(**inputs).last_hidden_state
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).last_hidden_state, fused, atol=1e-5, rtol=1e-5)


def test_flash_attention_is_offered_where_every_operation_takes_it():
    offered = {name: FlexiBertModel(make_config(name))._supports_flash_attn for name in SPECS}
    assert {name for name, offer in offered.items() if offer} == {"homogeneous", "multiplicative", "narrowing"}
    assert not FlexiBertModel(make_config("homogeneous", position_embedding_type="relative_key"))._supports_flash_attn
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        FlexiBertModel(make_config("fourier", attn_implementation="flash_attention_2"))


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*SPECS, "every_operation"])
@every_head
def test_every_parameter_has_a_gradient(spec, head):
    layers = EVERY_OPERATION if spec == "every_operation" else SPECS[spec]
    model = make_model(head, layers, position_embedding_type="relative_key").train()
    output = model(**make_inputs(head, labels=True, padding=True))
    loss = output.last_hidden_state.sum() + output.pooler_output.sum() if head is FlexiBertModel else output.loss
    loss.backward()
    for name, grad in gradients(model).items():
        assert grad is not None and torch.isfinite(grad).all(), name
        # Biases of keys move all scores of a row alike, so their gradient is zero up to rounding.
        assert grad.any() or grad.ndim == 1, name


def test_every_parameter_has_a_gradient_without_a_table_of_positions():
    """Data parallel training waits for gradients of all parameters."""
    model = make_model(FlexiBertForMaskedLM, EVERY_OPERATION).train()
    model(**make_inputs(FlexiBertForMaskedLM, labels=True, padding=True)).loss.backward()
    assert [name for name, grad in gradients(model).items() if grad is None] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")  # its new name is younger than transformers 5.5
@every_spec
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(spec, use_reentrant):
    model, inputs = make_model(FlexiBertForMaskedLM, spec).train(), make_inputs(FlexiBertForMaskedLM, True, True)
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model(**inputs).loss.backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], msg=name)


@every_spec
def test_dropout_is_active_in_training_only(spec):
    model = make_model(FlexiBertModel, spec, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    inputs = make_inputs(padding=True)
    assert torch.equal(model(**inputs)[0], model(**inputs)[0])
    model.train()
    assert not torch.equal(model(**inputs)[0], model(**inputs)[0])


# --- numbers and devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*SPECS, "every_operation"])
@every_position
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_half_precision_stays_half(spec, positions, dtype, backend):
    """Nothing fails, no module hands on another dtype, and results are those of float32 up to rounding."""
    layers = EVERY_OPERATION if spec == "every_operation" else SPECS[spec]
    model = make_model(FlexiBertForMaskedLM, layers, position_embedding_type=positions, attn_implementation=backend)
    inputs = make_inputs(padding=True)
    expected = model(**inputs).logits[inputs["attention_mask"].bool()]
    upcast = set()

    def note_dtype(module, _, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != dtype:
                upcast.add(type(module).__name__)

    for module in model.to(dtype).modules():
        module.register_forward_hook(note_dtype)
    logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert not upcast
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("spec", ["homogeneous", "multiplicative", "dynamic_convolution", "graph"])
@every_position
def test_offloaded_weights(spec, positions):
    """Weights that Accelerate loads module by module are there when they are used."""
    from accelerate import cpu_offload

    model, inputs = make_model(FlexiBertForMaskedLM, spec, position_embedding_type=positions), make_inputs()
    expected = model(**inputs).logits
    inputs.pop("token_type_ids")
    without_types = model(**inputs).logits
    model = cpu_offload(model, execution_device="cpu")
    assert torch.equal(model(**make_inputs()).logits, expected)
    assert torch.equal(model(**inputs).logits, without_types)


@pytest.mark.parametrize("spec", ["homogeneous", "graph"])
def test_device_map(spec, tmp_path):
    """Placed automatically, with too little memory for all of it, so that a part comes from disk."""
    model, inputs = (
        make_model(FlexiBertForMaskedLM, spec, position_embedding_type="relative_key"),
        make_inputs(padding=True),
    )
    model.save_pretrained(tmp_path / "model")
    loaded = FlexiBertForMaskedLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": 60_000}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("positions", ["relative_key", pytest.param("rotary", marks=pytest.mark.slow)])
def test_compiles_whole_and_once_for_all_lengths(positions):
    graphs = []

    def count(graph_module, _):
        graphs.append(graph_module)
        return graph_module.forward

    torch._dynamo.reset()
    model = make_model(FlexiBertForMaskedLM, EVERY_OPERATION, position_embedding_type=positions)
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for length in (16, 23, 9, 40, 30):
        ids = torch.randint(1, VOCAB_SIZE, (2, length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        torch.testing.assert_close(compiled(ids, mask).logits, model(ids, mask).logits, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 2  # one for the first length, one for all others

"""Weight transfer: equal encoders transfer exactly, overlaps count parameters, what does not fit stays as it was."""

import pytest
import torch
from conftest import layer, op

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.evaluation.weight_transfer import overlap, transfer


ATTENTION, COSINE = op("self_attention", 2), op("linear_transform", 2, transform="cosine")


def config(*layers):
    return FlexiBertConfig(vocab_size=50, layers=list(layers), max_position_embeddings=16)


def build(*layers, seed=0):
    torch.manual_seed(seed)
    model = FlexiBertForMaskedLM(config(*layers)).eval()
    for parameter in model.parameters():  # norms and biases of 1 and 0 would hide what is not copied
        torch.nn.init.normal_(parameter)
    return model


def test_equal_encoders_transfer_exactly():
    layers = layer(16, ATTENTION), layer(8, COSINE)
    source, target = build(*layers, seed=1), build(*layers, seed=2)
    transfer(target, source.state_dict(), source.config)
    ids = torch.arange(10)[None]
    assert torch.equal(source(ids).logits, target(ids).logits)
    assert overlap(source.config, target.config) == 1.0


def test_overlap_counts_parameters_before_the_first_difference():
    source, target = (
        config(layer(16, ATTENTION), layer(16, COSINE)),
        config(layer(16, ATTENTION), layer(16, ATTENTION)),
    )
    model = FlexiBertForMaskedLM(target).model
    given = sum(p.numel() for p in (*model.embeddings.parameters(), *model.layers[0].parameters()))
    assert overlap(source, target) == pytest.approx(given / sum(p.numel() for p in model.parameters()))
    # equal layers behind a difference do not count
    assert overlap(config(layer(16, COSINE), layer(16, ATTENTION)), target) < overlap(source, target)
    assert overlap(config(layer(8, ATTENTION)), config(layer(16, ATTENTION))) == 0.0


def test_layers_of_another_kind_and_all_behind_them_keep_their_weights():
    source = build(layer(16, ATTENTION), layer(16, COSINE), layer(16, ATTENTION), seed=1)
    target = build(layer(16, ATTENTION), layer(16, ATTENTION), layer(16, ATTENTION), seed=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    transfer(target, source.state_dict(), source.config)
    for name, value in target.state_dict().items():
        kept = name.startswith(("model.layers.1.", "model.layers.2."))
        assert torch.equal(value, before[name]) == kept, name


@pytest.mark.parametrize("mode", ["ordered", "random_projection"])
def test_other_sizes_get_the_leading_part(mode):
    source = build(layer(16, ATTENTION, feed_forward=(32,)), seed=1)
    target = build(layer(16, ATTENTION, feed_forward=(24,)), seed=2)
    transfer(target, source.state_dict(), source.config, mode)
    given, got = (model.model.layers[0].feed_forward.hidden[0] for model in (source, target))
    assert torch.equal(got.bias, given.bias[:24])
    assert torch.equal(got.weight, given.weight[:24]) == (mode == "ordered")
    larger = build(layer(16, ATTENTION, feed_forward=(40,)), seed=3)
    before = larger.model.layers[0].feed_forward.hidden[0].weight.clone()
    transfer(larger, source.state_dict(), source.config, mode)
    weight = larger.model.layers[0].feed_forward.hidden[0].weight
    assert torch.equal(weight[:32], given.weight) and torch.equal(weight[32:], before[32:])


def test_random_projection_keeps_products_of_tensors():
    """What one matrix writes is what the next one reads, so both have to be mixed alike."""
    source = build(layer(16, ATTENTION, feed_forward=(512,)), seed=1)
    target = build(layer(16, ATTENTION, feed_forward=(256,)), seed=2)
    transfer(target, source.state_dict(), source.config, "random_projection", seed=3)
    first, second = (model.model.layers[0].feed_forward for model in (source, target))
    products = [(part.output.weight @ part.hidden[0].weight).flatten() for part in (first, second)]
    assert torch.cosine_similarity(*products, dim=0) > 0.4  # 0 where every tensor has a projection of its own


@pytest.mark.parametrize("mode", ["ordered", "random_projection"])
@pytest.mark.parametrize("sizes", [(9, 5), (5, 9)])
def test_kernels_of_another_size_keep_their_centre(mode, sizes):
    def layers(size):
        dynamic = layer(16, op("dynamic_convolution", 2, kernel_size=size))
        return dynamic, layer(16, op("lightweight_convolution", 2, kernel_size=size))

    source, target = build(*layers(sizes[0]), seed=1), build(*layers(sizes[1]), seed=2)
    transfer(target, source.state_dict(), source.config, mode)
    from_, to = ((size - min(sizes)) // 2 for size in sizes)
    (dynamic, light), (given, given_light) = (
        [encoder_layer.mixer.operations[0] for encoder_layer in model.model.layers] for model in (target, source)
    )
    for got, had in (
        (dynamic.depthwise.weight, given.depthwise.weight),
        (dynamic.kernel.bias.unflatten(0, (2, -1)), given.kernel.bias.unflatten(0, (2, -1))),
        (
            dynamic.kernel.weight.unflatten(0, (2, -1)).movedim(1, -1),
            given.kernel.weight.unflatten(0, (2, -1)).movedim(1, -1),
        ),
        (light.weight, given_light.weight),
    ):
        assert torch.equal(got[..., to : to + min(sizes)], had[..., from_ : from_ + min(sizes)])


def test_random_projection_keeps_lengths_on_average():
    source, target = (
        build(layer(16, ATTENTION, feed_forward=(512,)), seed=1),
        build(layer(16, ATTENTION, feed_forward=(256,))),
    )
    transfer(target, source.state_dict(), source.config, "random_projection", seed=3)
    norms = [
        model.model.layers[0].feed_forward.hidden[0].weight.norm(dim=0).mean().item() for model in (source, target)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.15)
    again = build(layer(16, ATTENTION, feed_forward=(256,)))
    transfer(again, source.state_dict(), source.config, "random_projection", seed=3)
    assert torch.equal(
        again.state_dict()["model.layers.0.feed_forward.hidden.0.weight"],
        target.state_dict()["model.layers.0.feed_forward.hidden.0.weight"],
    )

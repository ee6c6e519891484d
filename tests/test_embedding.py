"""Transformer2vec: distances between vectors against edit distances, of known and of unseen architectures."""

import random

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from flexibert import named_config
from search.bayesopt.encoding import Encoding
from search.recipe import load_recipe
from search.similarity.computational_graph import architecture_graph
from search.similarity.edit_distance import EditDistance
from search.similarity.transformer2vec import ArchitectureEmbedding, transformer2vec


SPACE = load_recipe("flexibert").space


def members(count, seed):
    rng = random.Random(seed)
    return [SPACE.sample(rng) for _ in range(count)]


@pytest.fixture(scope="module", params=["chain", "residual"])
def embedding(request):
    return ArchitectureEmbedding.fit(members(150, 0), topology=request.param)


def relative_error(found, wanted):
    return np.mean(np.abs(found - wanted)[wanted > 0] / wanted[wanted > 0])


def test_distances_of_unseen_architectures_match(embedding):
    """Measured with four seeds: Spearman .988 to .991, relative error 7 to 8%."""
    one, other = members(60, 1), members(60, 2)
    wanted = embedding.distance.pairwise(one, other)
    found = cdist(embedding.transform(one), embedding.transform(other))
    assert spearmanr(found.ravel(), wanted.ravel()).statistic > 0.98
    assert relative_error(found, wanted) < 0.1


def test_a_table_matches_the_distances_it_is_trained_on():
    """Measured with four seeds: relative error 5%, with 2 dimensions 10 to 13%."""
    library = members(80, 3)
    wanted = EditDistance(library, starts=1, exchanges=False).pairwise(library)
    vectors = transformer2vec(wanted, steps=1000)
    assert vectors.shape == (80, 16)
    error = relative_error(cdist(vectors, vectors), wanted)
    assert error < 0.07
    flat = transformer2vec(wanted, dimensions=2, steps=1000)
    assert relative_error(cdist(flat, flat), wanted) > error
    assert np.array_equal(transformer2vec(wanted, steps=20), transformer2vec(wanted, steps=20))
    assert not np.array_equal(transformer2vec(wanted, steps=20), transformer2vec(wanted, steps=20, seed=1))


def test_same_examples_and_seed_same_embedding():
    examples, unseen = members(20, 4), members(5, 5)
    vectors = ArchitectureEmbedding.fit(examples, dimensions=4).transform(unseen)
    assert vectors.shape == (5, 4)
    assert np.array_equal(ArchitectureEmbedding.fit(examples, dimensions=4).transform(unseen), vectors)
    assert not np.array_equal(ArchitectureEmbedding.fit(examples, dimensions=4, seed=1).transform(unseen), vectors)


def test_a_vector_does_not_depend_on_what_else_is_embedded(embedding):
    unseen = members(5, 6)
    alone = np.concatenate([embedding.transform([layers]) for layers in unseen])
    assert np.allclose(embedding.transform(unseen), alone, atol=1e-3)
    assert embedding.transform([]).shape == (0, 16)


@pytest.mark.parametrize("name", ["bert-base", "flexibert-large", "autobert-zero-base"])
def test_architectures_outside_the_space_are_embedded(embedding, name):
    layers = named_config(name).layer_specs
    vectors = embedding.transform([layers, *members(5, 7)])
    assert np.isfinite(vectors).all()
    assert cdist(vectors[:1], vectors[1:]).min() > cdist(vectors[1:], vectors[1:]).max()  # far larger than all others


def test_equal_architectures_only():
    layers = members(1, 9)[0]
    vectors = ArchitectureEmbedding.fit([layers] * 3).transform([layers, layers])
    assert np.isfinite(vectors).all() and np.array_equal(*vectors)


def test_an_encoding_embeds_its_rows():
    encoding = Encoding(SPACE)
    rows = encoding.sample(40, np.random.default_rng(1))
    vectors = encoding.embed(rows)
    assert np.array_equal(encoding.embed(rows[::-1]), vectors[::-1])
    assert np.array_equal(Encoding(SPACE).embed(rows), vectors)
    assert encoding.embed(rows[:0]).shape == (0, 16)
    layers = [SPACE.build(encoding.values(row)) for row in rows]
    wanted = EditDistance(members(200, 0), starts=1, exchanges=False).pairwise(layers)
    assert spearmanr(cdist(vectors, vectors).ravel(), wanted.ravel()).statistic > 0.98


def test_topologies_differ_where_feed_forwards_are_deep():
    """With one add_norm behind each of three layers there are two vertices more in each."""
    examples = members(20, 10)
    deep, shallow = (
        next(layers for layers in members(200, 11) if {len(layer.feed_forward) for layer in layers} == {depth})
        for depth in (3, 1)
    )
    chain, residual = (EditDistance(examples, topology=topology) for topology in ("chain", "residual"))
    extra = len(architecture_graph(deep, "residual").labels) - len(architecture_graph(deep).labels)
    assert extra == 2 * len(deep)
    assert residual.pairwise([deep], [shallow]) != chain.pairwise([deep], [shallow])
    assert residual.pairwise([shallow], [shallow]) == 0

"""How many edges two encoders' graphs share under a best map between their vertices: the hard part of edit distance.

The prices of edits make the problem fall apart (see `edit_distance.py`). Vertices are points on a line, so a map of
least vertex cost is transport on a line. It costs least exactly if no vertex moves against the stream: between two
neighbouring labels everybody goes up, everybody goes down, or nobody passes. Among these maps, one that keeps many
edges is looked for:

1. An encoder is a chain of anchors, o_0 -> m_1 -> o_1 -> ... -> m_l -> o_l, where o_0 is the input and m and o are the
   add_norms of a layer; heads stand between o and m, feed-forward layers between m and o. All ways to map the anchors
   of one encoder to those of the other are ranked by the edges that they would keep, each block by itself.
2. From the best of them a vertex map is built: vertices take the places that the anchors suggest as long as the stream
   carries them there, then the rest is matched in order of labels.
3. Each map is improved by exchanges: the two vertices whose images are worth most, or lose least, the other way round
   swap them, unless edges were lost; half-way, only the best maps go on. What counts is the best map on the way.

All is vectorised over pairs of graphs and over maps, and no result depends on which pairs are asked for together.

Notation: K pairs of graphs, R maps (several for each pair), N vertices of the larger graph, M maps of anchors, T ranks
of labels, l layers.
"""

import functools
import itertools

import numpy as np

from .computational_graph import ABSENT, END, FEED_FORWARD, HEAD, OUT, GraphBatch


_MAX_ANCHOR_MAPS = 5000
_KEPT = 4  # one in so many maps is improved to the end
_FORBIDDEN = 4000  # more than any gain times _TIES; twice as much still fits into 16 bits
_TIES = 16  # exchanges of equal gain are told apart by that many random ranks


def most_common_edges(a: GraphBatch, b: GraphBatch, starts: int, exchanges: bool = True) -> np.ndarray:
    """Edges kept by the best vertex map found, among the maps of least vertex cost.

    Args:
        a: K graphs with N vertices and the same number of layers.
        b: Their K partners, with as many vertices; depths may differ from those of `a`, but all are equal.
        starts: How many maps of anchors to start from.
        exchanges: Whether to improve the vertex maps; without, they are a quick and good guess.

    Returns:
        (K,) whole numbers.
    """
    stream = _stream(a, b)
    allowed = _allowed(stream)
    sigma, tau = _anchor_maps(int(a.num_layers[0]), int(b.num_layers[0]))
    starts = min(starts, len(sigma))
    scores = _score_anchor_maps(a, b, allowed, sigma, tau)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :starts]
    rows = np.repeat(np.arange(len(a.labels)), starts)
    row_a, row_b = a.take(rows), b.take(rows)
    hints = _hints(row_a, row_b, sigma[best.ravel()], tau[best.ravel()])
    images = _initial_maps(row_a, row_b, stream[rows], hints)
    if exchanges:
        return _improve(a, b, allowed, images.reshape(len(a.labels), starts, -1))
    source, target = (images[np.arange(len(rows))[:, None], row_a.edges[:, :, end]] for end in (0, 1))
    kept: np.ndarray = b.adjacency[rows[:, None], source, target].sum(1).reshape(-1, starts).max(1)
    return kept


def _stream(a: GraphBatch, b: GraphBatch) -> np.ndarray:
    """(K, T - 1) how many vertices must pass from label t up to t + 1, negative: down, on the way from `a` to `b`."""
    ranks = np.arange(max(a.labels.max(), b.labels.max()))
    stream: np.ndarray = (b.labels[:, :, None] > ranks).sum(1) - (a.labels[:, :, None] > ranks).sum(1)
    return stream


def _allowed(stream: np.ndarray) -> np.ndarray:
    """(K, T, T) whether a vertex of the first label may become one of the second in a map of least vertex cost."""
    against_up = np.pad((stream <= 0).cumsum(1), ((0, 0), (1, 0)))
    against_down = np.pad((stream >= 0).cumsum(1), ((0, 0), (1, 0)))
    up = against_up[:, :, None] == against_up[:, None]
    down = against_down[:, :, None] == against_down[:, None]
    allowed: np.ndarray = np.where(np.tri(stream.shape[1] + 1, dtype=bool), down, up)
    return allowed


# --- maps of anchors ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _anchor_maps(num_a: int, num_b: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the anchors of an encoder of `num_a` layers go: (M, num_a) for m, (M, num_a + 1) for o; -1 is nowhere.

    All ways to place as many as possible; where these are too many, all shifts along the chain.
    """
    sizes = [np.prod(np.arange(abs(num_a - num_b) + 1, max(num_a, num_b) + k + 1.0)) for k in (0, 1)]
    if np.prod(sizes) <= _MAX_ANCHOR_MAPS:
        pairs = list(itertools.product(_injections(num_a, num_b), _injections(num_a + 1, num_b + 1)))
        return np.array([sigma for sigma, _ in pairs]), np.array([tau for _, tau in pairs])
    shifts = np.arange(1 - num_a, num_b)[:, None]
    sigma, tau = np.arange(num_a) + shifts, np.arange(num_a + 1) + shifts
    sigma[(sigma < 0) | (sigma >= num_b)] = -1
    tau[(tau < 0) | (tau > num_b)] = -1
    return sigma, tau


def _injections(num_a: int, num_b: int) -> list[tuple[int, ...]]:
    if num_a <= num_b:
        return list(itertools.permutations(range(num_b), num_a))
    sources = itertools.permutations(range(num_a), num_b)
    return [tuple(places.index(i) if i in places else -1 for i in range(num_a)) for places in sources]


def _score_anchor_maps(
    a: GraphBatch, b: GraphBatch, allowed: np.ndarray, sigma: np.ndarray, tau: np.ndarray
) -> np.ndarray:
    """(K, M) edges that a map of anchors keeps if no two blocks compete for the stream."""
    num_a, num_b = sigma.shape[1], int(b.num_layers[0])
    heads = _matches(a, b, allowed, HEAD, num_a, num_b).sum(3)
    forward = _matches(a, b, allowed, FEED_FORWARD, num_a, num_b)
    backward = _matches(a, b, allowed, FEED_FORWARD, num_a, num_b, from_end=True)
    length_a = a.counts[:, FEED_FORWARD, :num_a, None]
    equal_length = length_a == b.counts[:, FEED_FORWARD, None, :num_b]
    # The edges along a chain of which only the m before it, only the o behind it, or both are kept.
    from_m, from_o = (chain[..., 0] + (chain[..., 1:] & chain[..., :-1]).sum(3) for chain in (forward, backward))
    whole = np.where(equal_length, from_m + backward[..., 0], np.maximum(from_m, from_o))

    # Tables over the images of the anchors around a block; behind the last, num_b for m and num_b + 1 for o: nowhere.
    behind = np.pad(heads, ((0, 0), (0, 0), (0, 1)))[:, :, None]
    before = np.pad(heads, ((0, 0), (0, 0), (0, 2)))[:, :, :, None]
    mixing = np.minimum(before + behind, a.counts[:, HEAD, :num_a, None, None])
    chain = np.maximum(
        np.pad(from_m, ((0, 0), (0, 0), (0, 1)))[:, :, :, None], np.pad(from_o, ((0, 0), (0, 0), (1, 1)))[:, :, None]
    )
    j = np.arange(num_b)
    mixing[:, :, j, j] = 2 * heads + 1
    chain[:, :, j, j + 1] = whole + 1

    scores = np.zeros((len(allowed), len(sigma)), np.int16)
    m, o = np.where(sigma < 0, num_b, sigma), np.where(tau < 0, num_b + 1, tau)
    for i in range(num_a):
        scores += _flat(mixing[:, i])[:, o[:, i] * (num_b + 1) + m[:, i]]
        scores += _flat(chain[:, i])[:, m[:, i] * (num_b + 2) + o[:, i + 1]]
    scores += o[:, num_a] == num_b  # the edge to the output
    # The input only takes the place of an add_norm, or the reverse, with the stream; else the anchor is lost.
    loses_input, loses_output = ~allowed[:, :1, 2], ~allowed[:, 2, :1]
    scores -= np.int16(4) * (loses_input & (tau[:, 0] > 0)) + np.int16(4) * (loses_output & (tau[:, 1:] == 0).any(1))
    return scores


def _flat(table: np.ndarray) -> np.ndarray:
    return table.reshape(len(table), -1).astype(np.int16)


def _matches(
    a: GraphBatch, b: GraphBatch, allowed: np.ndarray, role: int, num_a: int, num_b: int, from_end: bool = False
) -> np.ndarray:
    """(K, num_a, num_b, P) whether the vertices at the same place in two blocks may be mapped to each other."""
    length = max(a.counts[:, role].max(), b.counts[:, role].max())
    labels = []
    for batch, depth in ((a, num_a), (b, num_b)):
        first, count = (array[:, role, :depth, None] for array in (batch.first, batch.counts))
        place = np.arange(length)
        vertex = np.where(place < count, first + (count - 1 - place if from_end else place), 0)
        found = np.take_along_axis(batch.labels, vertex.reshape(len(vertex), -1), 1).reshape(vertex.shape)
        labels.append((found, place < count))
    (labels_a, exist_a), (labels_b, exist_b) = labels
    pairs = np.arange(len(allowed))[:, None, None, None]
    may: np.ndarray = allowed[pairs, labels_a[:, :, None], labels_b[:, None]] & exist_a[:, :, None] & exist_b[:, None]
    return may


# --- vertex maps --------------------------------------------------------------------------------------------------


def _hints(a: GraphBatch, b: GraphBatch, sigma: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, N) twice: the image that an anchor suggests for each vertex, first the m next to it, then the o; or -1."""
    rows = np.arange(len(a.roles))[:, None]
    depth = a.first.shape[2]
    sigma, tau = (np.pad(m, ((0, 0), (0, depth + 1 - m.shape[1])), constant_values=-1) for m in (sigma, tau))

    def vertex(layer: np.ndarray, place: np.ndarray) -> np.ndarray:
        count = np.where(layer >= 0, b.counts[rows, a.roles, layer], 0)
        return np.where((place >= 0) & (place < count), b.first[rows, a.roles, layer] + place, -1)

    m, o, next_o = (np.take_along_axis(anchors, a.layers + k, 1) for anchors, k in ((sigma, 0), (tau, 0), (tau, 1)))
    next_o = np.maximum(next_o - 1, -1)
    is_out, is_chain, is_absent = a.roles == OUT, a.roles == FEED_FORWARD, a.roles == ABSENT
    to_end = a.counts[rows, a.roles, a.layers] - a.places
    from_end = b.counts[rows, a.roles, next_o] - to_end
    first = vertex(np.select([is_absent, is_out, a.roles == END], [-1, o, 0], m), a.places)
    second = np.where(is_chain, vertex(next_o, from_end), vertex(np.where(a.roles == HEAD, o, -1), a.places))
    return first, second


def _initial_maps(
    a: GraphBatch, b: GraphBatch, stream: np.ndarray, hints: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(R, N) images of the vertices: the hints as far as the stream carries them, the rest in order of labels."""
    num_rows, size = a.labels.shape
    rows, ranks, left = np.arange(num_rows), np.arange(stream.shape[1]), stream.copy()
    images = np.full((num_rows, size), -1)
    taken = np.zeros((num_rows, size + 1), bool)  # the last column stands for no vertex
    for hint in hints:
        labels = np.take_along_axis(b.labels, np.maximum(hint, 0), 1)
        # Short ways first, since they leave more of the stream to others; then what both anchors ask for.
        urgency = 2 * abs(labels - a.labels) - (hints[0] == hints[1])
        order = np.argsort(np.where(hint < 0, 2 * len(ranks) + 2, urgency), axis=1, kind="stable")
        for step in range((hint >= 0).sum(1).max()):
            vertex = order[:, step]
            image, low, high = hint[rows, vertex], a.labels[rows, vertex], labels[rows, vertex]
            up = np.sign(high - low)[:, None]
            way = (ranks >= np.minimum(low, high)[:, None]) & (ranks < np.maximum(low, high)[:, None])
            free = (image >= 0) & ~taken[rows, image] & (images[rows, vertex] < 0) & (~way | (left * up > 0)).all(1)
            left -= way * up * free[:, None]
            images[rows[free], vertex[free]] = image[free]
            taken[rows[free], image[free]] = True
    rest_a = np.argsort(np.where(images < 0, a.labels, -1), axis=1, kind="stable")
    rest_b = np.argsort(np.where(taken[:, :size], -1, b.labels), axis=1, kind="stable")
    ordered = np.take_along_axis(images, rest_a, 1)
    np.put_along_axis(images, rest_a, np.where(ordered < 0, rest_b, ordered), 1)
    return images


@functools.lru_cache(maxsize=64)
def _tie_breaks(size: int) -> np.ndarray:
    """(64, N, N) ranks below `_TIES`, one matrix for each step, in turn; pairs below the diagonal are out."""
    ranks = np.random.default_rng(size).integers(0, _TIES, (64, size, size), dtype=np.int16)
    return np.where(np.tri(size, dtype=bool), np.int16(-2 * _FORBIDDEN), ranks)


class _Maps:
    """Vertex maps on their way uphill, R = K * starts of them.

    Attributes:
        gain: (R, N, N) edges kept at vertex u if it took the image of vertex v, times `_TIES`; far below zero where
            the stream forbids it.
        edges: (R, N, N) adjacency of `a`; `reverse` is transposed, `both` the sum of the two times `_TIES`.
        image: (R, N, N) adjacency of `b` between the images of vertices; `image_both` is the sum with its transpose.
        kept: (R,) edges kept now, `best` at best.
    """

    def __init__(self, a: GraphBatch, b: GraphBatch, allowed: np.ndarray, images: np.ndarray):
        count, starts, size = images.shape
        dtype = np.int16 if size < 200 else np.int32  # a gain is at most the degree of a vertex
        pairs = np.repeat(np.arange(count), starts)
        images = images.reshape(-1, size)
        self.edges = a.adjacency.astype(dtype)[pairs]
        self.reverse = np.ascontiguousarray(self.edges.transpose(0, 2, 1))
        self.image = b.adjacency.astype(dtype)[pairs[:, None, None], images[:, :, None], images[:, None]]
        reverse_image = self.image.transpose(0, 2, 1)
        self.both = (self.edges + self.reverse) * dtype(_TIES)
        self.image_both = self.image + reverse_image
        ways = np.concatenate([self.edges, self.reverse], 2, dtype=np.float32)
        image_ways = np.concatenate([reverse_image, self.image], 1, dtype=np.float32)
        self.gain = (ways @ image_ways).astype(dtype) * dtype(_TIES)
        forbidden = ~allowed[np.arange(count)[:, None, None], a.labels[:, :, None], b.labels[:, None]]
        self.gain -= np.take_along_axis(forbidden[pairs], images[:, None], 2) * dtype(_FORBIDDEN)
        self.kept = (self.edges * self.image).sum((1, 2))
        self.best = self.kept.copy()

    def select(self, rows: np.ndarray) -> None:
        """Goes on with some of the maps."""
        for name, array in vars(self).items():
            setattr(self, name, array[rows])

    def exchange(self, steps: range) -> None:
        """Swaps the images of two vertices in every map and step, unless every swap would lose edges."""
        count, size, _ = self.gain.shape
        rows, diagonal, ties = np.arange(count), np.arange(size), _tie_breaks(size)
        buffer, change = np.empty_like(self.gain), np.empty_like(self.gain)
        for step in steps:
            np.subtract(self.gain, self.gain[:, diagonal, diagonal, None], out=buffer)
            np.add(buffer, buffer.transpose(0, 2, 1), out=change)
            np.multiply(self.both, self.image_both, out=buffer)  # an edge between the two was counted as lost twice
            change += buffer
            change += ties[step % len(ties)]
            choice = change.reshape(count, -1).argmax(1)
            value = change.reshape(count, -1)[rows, choice] // _TIES
            choice[value < 0] = 0  # a vertex with itself
            self.kept += np.maximum(value, 0)
            np.maximum(self.best, self.kept, out=self.best)
            u, v = np.divmod(choice, size)
            self._swap(rows, u, v, buffer)

    def _swap(self, rows: np.ndarray, u: np.ndarray, v: np.ndarray, buffer: np.ndarray) -> None:
        ties = self.gain.dtype.type(_TIES)
        arriving = (self.image[rows, :, v] - self.image[rows, :, u]) * ties
        leaving = (self.image[rows, v] - self.image[rows, u]) * ties
        for neighbours, images in ((self.reverse, arriving), (self.edges, leaving)):
            np.multiply((neighbours[rows, u] - neighbours[rows, v])[:, :, None], images[:, None], out=buffer)
            self.gain += buffer
        for array in (self.gain, self.image, self.image_both):
            array[rows, :, u], array[rows, :, v] = array[rows, :, v], array[rows, :, u]
        for array in (self.image, self.image_both):
            array[rows, u], array[rows, v] = array[rows, v], array[rows, u]


def _improve(a: GraphBatch, b: GraphBatch, allowed: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(K,) most edges kept by the maps `images` (K, starts, N) and on the ways from them."""
    count, starts, size = images.shape
    maps = _Maps(a, b, allowed, images)
    maps.exchange(range(size // 2))
    leaders = np.argsort(-maps.best.reshape(count, starts), axis=1, kind="stable")[:, : max(1, starts // _KEPT)]
    maps.select((leaders + starts * np.arange(count)[:, None]).ravel())
    maps.exchange(range(size // 2, 2 * size))
    best: np.ndarray = maps.best.reshape(count, -1).max(1)
    return best

r"""Interval adjoint significance analysis: which nodes of a network matter, and removing the rest.

.. math:: S_{[y]}([n]_{l,i}) = w([n]_{l,i}) \cdot \max |\nabla_{[n]_{l,i}} [y]|

(Sobolev Pruning, eq. 3; eq. 2 is the same for an input): the width of a node's interval times the
largest slope from it to the output, over a whole box of inputs at once. By the mean-value theorem
no input of the box can move the output by more than S through that node alone. Networks are
`nn.Sequential` of Linear layers with one activation between each two; none is changed in place.
`of_nodes`, `of_inputs` and `prune` take a `sobolev.Standardised` one as well, with box and data in
its raw units.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .._validate import require
from ..arithmetic import intervals
from ..arithmetic.intervals import Interval, layers_of, trace
from .sobolev import Standardised

COMPENSATIONS = ("midpoint", "averaged", "mean", "none")
CHUNK, CHUNK_GPU = 256, 4096  # boxes at a time: what a core's cache holds, what fills a GPU


def example() -> tuple[nn.Sequential, Interval]:
    """The network and the box of Example 3.1, in float64.

    The paper prints no weights. These satisfy all 64 bounds of Table 1 to the last printed digit,
    each at least 4 % of that digit away from being rounded otherwise; they are not unique.

    >>> network, box = example()
    >>> box.lo, box.hi
    (tensor([1., 1.], dtype=torch.float64), tensor([10., 10.], dtype=torch.float64))
    """
    weights = [
        [[0.1254445, 0.0277050], [0.1121345, -0.0022837]],
        [[0.1573795, 0.2665694], [0.4937481, 0.8482953]],
        [[0.4286991, 1.3663363]],
    ]
    biases = [[0.1619501, 0.2783826], [0.0936984, 0.2989645], [0.2184]]
    w, b = ([torch.tensor(t, dtype=torch.float64) for t in ts] for ts in (weights, biases))
    ten = torch.full((2,), 10.0, dtype=torch.float64)
    return _sequential(w, b, nn.ReLU), Interval(ten / 10, ten)


# Sub-boxes


def cells_of(network: nn.Sequential, box: Interval, splits: int = 1) -> Interval:
    """The box in `splits` sub-boxes, (splits, inputs), cut where the output feels it most.

    A `box` of shape (cells, inputs), say from `kd_cells`, comes back as it is.

    >>> network, box = example()
    >>> cells_of(network, box, 2).hi  # the first input is worth cutting
    tensor([[ 5.5000, 10.0000],
            [10.0000, 10.0000]], dtype=torch.float64)

    Raises
    ------
    ValueError
        `splits` not a power of two, or not one with cells given.
    """
    if box.ndim == 2:
        require(splits == 1, "splits", splits, "1 for a box that is already split")
        return box
    if splits == 1:
        return box.unsqueeze(0)
    influence = trace(network, box).n_bar[0].mag.amax(0)
    return intervals.split(box, splits, weights=influence)


def kd_cells(data: Tensor, cells: int) -> Interval:
    """Bounding boxes of a k-d tree's leaves: data (n, inputs) -> (cells, inputs).

    Each round halves every leaf at the median of its widest coordinate. The boxes hold all the data
    and little else, where a grid must cover the empty corners too.

    >>> cells = kd_cells(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 2)
    >>> cells.lo.flatten(), cells.hi.flatten()  # [0, 1] and [5, 9]
    (tensor([0., 5.]), tensor([1., 9.]))

    Raises
    ------
    ValueError
        `cells` is no power of two, or there are fewer points than cells.
    """
    require(cells >= 1 and cells & (cells - 1) == 0, "cells", cells, "a power of two")
    require(len(data) >= cells, "data", len(data), f"at least as many points as cells, {cells}")
    leaves = [data]
    while len(leaves) < cells:
        halves = []
        for leaf in leaves:
            widest = (leaf.amax(0) - leaf.amin(0)).argmax()
            leaf = leaf[leaf[:, widest].argsort()]
            halves += [leaf[: len(leaf) // 2], leaf[len(leaf) // 2 :]]
        leaves = halves
    return Interval(
        torch.stack([leaf.amin(0) for leaf in leaves]),
        torch.stack([leaf.amax(0) for leaf in leaves]),
    )


def _inside(network: nn.Module, box: Interval, data: Tensor | None = None):
    """A plain network with box and data; what a `Standardised` one sees of them, and is, inside."""
    if not isinstance(network, Standardised):
        return network, box, data
    mean, spread = network.x_mean.double(), network.x_std.double()
    dim = len(mean)
    require(box.shape[-1:] == (dim,), "box", tuple(box.shape), f"of shape (..., {dim})")
    inner = (box.to(torch.float64) - mean) / spread
    return network.network, inner, data if data is None else (data - network.x_mean) / network.x_std


# Significance


def of_nodes(network: nn.Sequential | Standardised, box: Interval, splits: int = 1) -> list[Tensor]:
    """Significance of every hidden node, eq. 3: one tensor (width,) a hidden layer.

    >>> of_nodes(*example())  # the last layer's first node matters least
    [tensor([1.0229, 1.3112], dtype=torch.float64), tensor([0.2107, 2.1234], dtype=torch.float64)]

    Parameters
    ----------
    box : (inputs,), the range of the inputs, or (cells, inputs)
    splits : number of sub-boxes, a power of two. Width and slope are then those of the hull over
        the sub-boxes: both tighter. But a slope is now one met at some input, where for a single
        box it covers every combination of node values, also those that no input brings about.

    With several outputs the largest slopes to each are added up.

    Raises
    ------
    TypeError, ValueError
        As `trace` for the network and the box; `splits` as in `cells_of`.
    """
    extremes: list[tuple[Tensor, ...]] = []
    plain, box, _ = _inside(network, box)
    cells = cells_of(plain, box, splits)
    chunk = CHUNK if cells.device.type == "cpu" else CHUNK_GPU
    for i in range(0, len(cells), chunk):
        t = trace(plain, cells[i : i + chunk])
        new = [
            (n.lo.amin(0), n.hi.amax(0), n_bar.mag.sum(-2).amax(0))
            for n, n_bar in zip(t.n[1:], t.n_bar[1:], strict=True)
        ]
        extremes = [
            (torch.minimum(a, lo), torch.maximum(b, hi), torch.maximum(c, slope))
            for (a, b, c), (lo, hi, slope) in zip(extremes or new, new, strict=True)
        ]
    return [(hi - lo) * slope for lo, hi, slope in extremes]


def of_inputs(network: nn.Sequential | Standardised, box: Interval) -> Tensor:
    """Significance of every input, eq. 2, box (inputs,) -> (inputs,); raises as `trace`.

    >>> of_inputs(*example())
    tensor([2.1229, 0.1589], dtype=torch.float64)
    """
    plain, box, _ = _inside(network, box)
    t = trace(plain, box)
    return t.n[0].width * t.n_bar[0].mag.sum(-2)


def of_data(network: nn.Sequential, data: Tensor) -> list[Tensor]:
    """Eq. 3 with the range of values and the largest slope seen on data (n, inputs).

    One tensor (width,) a hidden layer.

    >>> network, box = example()
    >>> of_data(network, torch.stack([box.lo, box.hi]))
    [tensor([1.0229, 1.2589], dtype=torch.float64), tensor([0.2060, 2.0758], dtype=torch.float64)]
    """
    nodes = hidden_values(network, data)
    linear, activation = layers_of(network)
    scores = []
    for i, n in enumerate(nodes):
        n = n.detach().requires_grad_()
        y = _tail(linear, activation, i, n)
        slopes = [
            torch.autograd.grad(y[:, j].sum(), n, retain_graph=True)[0] for j in range(y.shape[1])
        ]
        slope = sum(s.abs().amax(0) for s in slopes)
        scores.append((n.amax(0) - n.amin(0)).detach() * slope)
    return scores


def magnitude(network: nn.Sequential) -> list[Tensor]:
    """The usual rival: norm of a node's incoming weights times norm of its outgoing ones.

    One tensor (width,) a hidden layer.

    >>> network, box = example()
    >>> magnitude(network)
    [tensor([0.0666, 0.0997], dtype=torch.float64), tensor([0.1327, 1.3411], dtype=torch.float64)]
    """
    linear, _ = layers_of(network)
    return [
        a.weight.detach().norm(dim=1) * b.weight.detach().norm(dim=0) for a, b in pairwise(linear)
    ]


@torch.no_grad()
def ablation_cost(network: nn.Sequential, data: Tensor) -> list[Tensor]:
    """What significance estimates: root mean square change of the output on data (n, inputs)
    when one node is held at its mean. One tensor (width,) a hidden layer.

    >>> network, box = example()
    >>> ablation_cost(network, torch.stack([box.lo, box.hi]))
    [tensor([0.5114, 0.6294], dtype=torch.float64), tensor([0.1030, 1.0379], dtype=torch.float64)]
    """
    linear, activation = layers_of(network)
    y = network(data)
    costs = []
    for i, n in enumerate(hidden_values(network, data)):
        cost = n.new_empty(n.shape[1])
        for j in range(n.shape[1]):
            held = n.clone()
            held[:, j] = n[:, j].mean()
            cost[j] = (_tail(linear, activation, i, held) - y).square().sum(-1).mean().sqrt()
        costs.append(cost)
    return costs


@torch.no_grad()
def hidden_values(network: nn.Sequential, data: Tensor) -> list[Tensor]:
    """Values of the hidden nodes on data (n, inputs): one tensor (n, width) a hidden layer.

    >>> network, box = example()
    >>> hidden_values(network, box.hi[None])[0]
    tensor([[1.6934, 1.3769]], dtype=torch.float64)
    """
    linear, activation = layers_of(network)
    dtype, inputs = linear[0].weight.dtype, linear[0].in_features
    if data.dtype != dtype:
        raise TypeError(f"data must be of the network's dtype, {dtype}, got {data.dtype}")
    fits = data.ndim == 2 and data.shape[1] == inputs
    require(fits, "data", tuple(data.shape), f"of shape (n, {inputs})")
    values, act = [], activation()
    for layer in linear[:-1]:
        data = act(layer(data))
        values.append(data)
    return values


def _tail(linear, activation, layer, n):
    """Output from the values n (rows, width) of a hidden layer on."""
    act = activation()
    n = linear[layer + 1](n)
    for after in linear[layer + 2 :]:
        n = after(act(n))
    return n


# Removal


def _sequential(weights: list[Tensor], biases: list[Tensor], activation) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        modules += [layer, activation()]
    return nn.Sequential(*modules[:-1])


def _weights_and_biases(linear):
    weights = [layer.weight.detach() for layer in linear]
    biases = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        for layer in linear
    ]
    return weights, biases


def stand_ins(
    network: nn.Sequential, kind: str, *, box: Interval, splits: int = 1, data: Tensor | None = None
) -> list[Tensor]:
    """The constant that takes the place of each hidden node when it goes, (width,) a layer.

    >>> network, box = example()
    >>> stand_ins(network, "midpoint", box=box)
    [tensor([1.0043, 0.8826], dtype=torch.float64), tensor([0.4870, 1.5435], dtype=torch.float64)]

    Parameters
    ----------
    kind : "midpoint" of the node's interval over the box, the paper's; "averaged", mean of the
        midpoints over the sub-boxes; "mean" of its values on `data` (n, inputs), without data
        on 4,096 points spread over the box; "none", zero

    Raises
    ------
    ValueError
        An unknown `kind`, or data that are not finite.
    """
    require(kind in COMPENSATIONS, "compensation", kind, f"one of {', '.join(COMPENSATIONS)}")
    require(data is None or data.isfinite(), "data", data, "finite")
    if kind == "mean":
        if data is None:
            low, high = (box.lo, box.hi) if box.ndim == 1 else (box.lo.amin(0), box.hi.amax(0))
            u = torch.quasirandom.SobolEngine(len(low)).draw(4096).to(low)
            data = (low + (high - low) * u).to(layers_of(network)[0][0].weight.dtype)
        return [n.mean(0) for n in hidden_values(network, data)]
    if kind == "none":
        return [layer.weight.new_zeros(layer.out_features) for layer in layers_of(network)[0][:-1]]
    if kind == "midpoint" and box.ndim == 2:
        box = Interval(box.lo.amin(0), box.hi.amax(0))
    cells = cells_of(network, box, 1 if kind == "midpoint" else splits)
    _, n = intervals.values(network, cells)
    return [x.mid.mean(0).to(box.dtype) for x in n[1:]]


def prune(
    network: nn.Sequential | Standardised,
    keep: Sequence[int],
    *,
    box: Interval,
    splits: int = 1,
    compensation: str = "mean",
    data: Tensor | None = None,
    scores: Sequence[Tensor] | None = None,
) -> nn.Sequential | Standardised:
    """A smaller copy: the `keep[l]` most significant nodes of every hidden layer l.

    A node leaves with its incoming and outgoing weights; its stand-in (`stand_ins`) times the
    outgoing weights is added to the next biases.

    >>> network, box = example()
    >>> small = prune(network, [2, 1], box=box, compensation="midpoint")
    >>> small(box.mid).item(), network(box.mid).item()  # equal in the middle
    (2.5361..., 2.5361...)

    Parameters
    ----------
    box, splits : of the analysis, as in `of_nodes`
    compensation, data : as in `stand_ins`
    scores : rank the nodes by these instead, one tensor (width,) a hidden layer, on any device

    Raises
    ------
    TypeError
        As `trace` for the network; data in another dtype than the network's.
    ValueError
        `keep`, `box`, `data` or `scores` do not fit the network, scores that are not finite (NaN
        would count as the most significant; an infinite significance ranks nothing, take a smaller
        box), data that are not finite, or an unknown compensation.
    """
    inner, box, data = _inside(network, box, data)
    small = _prune(inner, keep, box, splits, compensation, data, scores)
    return network.around(small) if isinstance(network, Standardised) else small


def _prune(network, keep, box, splits=1, compensation="mean", data=None, scores=None):
    linear, activation = layers_of(network)
    inputs = linear[0].in_features
    require(box.shape[-1:] == (inputs,), "box", tuple(box.shape), f"of shape (..., {inputs})")
    widths = [layer.out_features for layer in linear[:-1]]
    fits = len(keep) == len(widths) and all(1 <= k <= w for k, w in zip(keep, widths, strict=False))
    require(fits, "keep", list(keep), f"one number a hidden layer, between 1 and {widths}")
    constants = stand_ins(network, compensation, box=box, splits=splits, data=data)
    scores = of_nodes(network, box, splits) if scores is None else scores
    shapes = [tuple(s.shape) for s in scores]
    require(shapes == [(w,) for w in widths], "scores", shapes, f"tensors of lengths {widths}")
    for i, score in enumerate(scores):
        require(score.isfinite(), f"scores[{i}]", score, "finite")

    weights, biases = _weights_and_biases(linear)
    for i, k in enumerate(keep):
        stays = scores[i].topk(k).indices.sort().values.to(weights[i].device)
        goes = torch.ones(widths[i], dtype=torch.bool, device=stays.device)
        goes[stays] = False
        biases[i + 1] = biases[i + 1] + weights[i + 1][:, goes] @ constants[i][goes].to(biases[i])
        weights[i + 1] = weights[i + 1][:, stays]
        weights[i], biases[i] = weights[i][stays], biases[i][stays]
    return _sequential(weights, biases, activation)


def prune_iteratively(
    network: nn.Sequential,
    keep: Sequence[int],
    *,
    box: Interval,
    retrain: Callable[[nn.Sequential, int], None],
    factor: float = 0.5,
    score: Callable[[nn.Sequential], Sequence[Tensor]] | None = None,
    **settings,
) -> nn.Sequential:
    """Prune layer by layer and round by round, retraining in between (section 6.1).

    In each round one layer after the other, from the first, shrinks to `factor` of its width, or to
    `keep`, whichever is larger, and the network is analysed anew and retrained.

    >>> network, box = example()
    >>> small = prune_iteratively(network, [1, 1], box=box, retrain=lambda net, layer: None)
    >>> [layer.out_features for layer in layers_of(small)[0]]
    [1, 1, 1]

    Parameters
    ----------
    retrain : called as ``retrain(network, layer)`` after each removal; trains in place
    score : called on the current network for the nodes' scores, instead of `of_nodes`
    settings : `splits`, `compensation` and `data` of `prune`

    Raises
    ------
    ValueError
        `factor` outside (0, 1), or whatever `prune` raises.
    """
    require(0 < factor < 1, "factor", factor, "between 0 and 1")
    while True:
        widths = [layer.out_features for layer in layers_of(network)[0][:-1]]
        if widths == list(keep):
            return network
        for i in range(len(widths)):
            if widths[i] == keep[i]:
                continue
            widths[i] = max(keep[i], int(widths[i] * factor))
            scores = None if score is None else score(network)
            network = _prune(network, widths, box, scores=scores, **settings)
            retrain(network, i)


@torch.no_grad()
def remove_layer(network: nn.Sequential, layer: int, data: Tensor) -> nn.Sequential:
    """A copy without hidden layer `layer`: its activation becomes a line, two layers one.

    Each node's activation is replaced by its least-squares line a k + c on the data (n, inputs),
    and W' (a (W n + b) + c) + b' is one linear layer again. The last hidden layers of a network
    whose third holds one node go this way.

    >>> network, box = example()
    >>> small = remove_layer(network, 1, torch.stack([box.lo, box.hi]))
    >>> (small(box.mid) - network(box.mid)).abs() < 1e-9  # exact: ReLU is a line on this box
    tensor([True])

    Raises
    ------
    ValueError
        No such hidden layer, or it is the only one.
    """
    linear, activation = layers_of(network)
    hidden = len(linear) - 1
    require(hidden > 1 and 0 <= layer < hidden, "layer", layer, f"one of {hidden} > 1 hidden ones")
    weights, biases = _weights_and_biases(linear)
    n = hidden_values(network, data)[layer]
    before = data if layer == 0 else hidden_values(network, data)[layer - 1]
    k = linear[layer](before)
    k_mean, n_mean = k.mean(0), n.mean(0)
    spread = (k - k_mean).square().sum(0)
    slope = ((k - k_mean) * (n - n_mean)).sum(0) / spread.where(spread > 0, 1.0)
    through = weights[layer + 1] * slope
    weight = through @ weights[layer]
    bias = biases[layer + 1] + weights[layer + 1] @ (n_mean + slope * (biases[layer] - k_mean))
    return _sequential(
        [*weights[:layer], weight, *weights[layer + 2 :]],
        [*biases[:layer], bias, *biases[layer + 2 :]],
        activation,
    )

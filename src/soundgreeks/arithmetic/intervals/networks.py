"""Interval values and adjoints of multilayer perceptrons."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..._validate import require
from . import functions as f
from .arithmetic import Interval, interval
from .rounding import activation_error, layer_error, widened


def _softplus(x: Interval) -> Interval:
    y = f.softplus(x)
    line = torch.minimum(y.lo, x.lo.clamp(min=20.0))
    return Interval._make(torch.where(x.hi > 20.0, line, y.lo), y.hi)


def _softplus_prime(x: Interval) -> Interval:
    y = f.softplus_prime(x)
    return Interval._make(y.lo, torch.where(x.hi > 20.0, 1.0, y.hi))


ACTIVATIONS = {
    nn.ReLU: (f.relu, f.relu_prime),
    nn.SiLU: (f.silu, f.silu_prime),
    nn.GELU: (f.gelu, f.gelu_prime),
    nn.Tanh: (f.tanh, f.tanh_prime),
    nn.Sigmoid: (f.sigmoid, f.sigmoid_prime),
    nn.Softplus: (_softplus, _softplus_prime),
}
"""Enclosure of each activation, as the module computes it, and of its derivative.

`nn.Softplus` is log(1 + exp(x)) up to its threshold, 20, and x beyond, which is up to 2.1e-9 less.
Its enclosure holds both, so that the mean-value theorem, which has no use for jumps, still applies.
"""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = {"approximate": "none", "beta": 1, "threshold": 20}  # of GELU and Softplus


def layers_of(network: nn.Module) -> tuple[list, type[nn.Module]]:
    """The linear layers of a multilayer perceptron and the type of the activation between them.

    What a module computes must be known exactly. Subclasses, a `forward` of an instance's own,
    forward hooks and parametrisations could compute anything, and are refused; so are the variants
    that `ACTIVATIONS` does not enclose (GELU by tanh, Softplus of another beta or threshold).

    >>> network, box = significance.example()
    >>> linear, activation = layers_of(network)
    >>> len(linear), activation.__name__
    (3, 'ReLU')

    Raises
    ------
    TypeError
        Anything but linear layers with one known activation between each two; names the module.
    """
    if type(network) is not nn.Sequential or len(network) % 2 == 0:
        raise TypeError(
            "network must be an nn.Sequential of Linear layers with one activation between each "
            f"two, got {network}"
        )
    activation = type(network[1]) if len(network) > 1 else nn.ReLU
    for i, module in enumerate(network):
        if reason := _unknown(module, activation if i % 2 else nn.Linear):
            raise TypeError(f"network[{i}] must be {reason}, got {module}")
    if reason := _unknown(network, nn.Sequential):
        raise TypeError(f"network must be {reason}, got {network}")
    return list(network)[::2], activation


def _unknown(module: nn.Module, wanted: type[nn.Module]) -> str | None:
    """What a module would have to be for us to know what it computes; nothing if it is that."""
    if wanted not in (nn.Sequential, nn.Linear, *ACTIVATIONS):
        return f"one of {', '.join(a.__name__ for a in ACTIVATIONS)}"
    if type(module) is not wanted:
        return f"a {wanted.__name__} itself, no other class"
    if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
        return "without forward hooks or a forward of its own"
    if any(getattr(module, key, value) != value for key, value in _PLAIN.items()):
        return f"a plain {wanted.__name__}"
    return None


def affine(x: Interval, layer: nn.Linear, computed: bool = False) -> Interval:
    """Enclosure of ``layer`` on x, (..., inputs) -> (..., outputs), or of what it computes there.

    >>> network, box = significance.example()
    >>> affine(box.unsqueeze(0), network[0]).hi
    tensor([[1.6934, 1.3974]], dtype=torch.float64)
    """
    y = x @ layer.weight.detach().mT
    y = y if layer.bias is None else y + layer.bias.detach()
    return widened(y, layer_error(x, layer.weight, layer.bias)) if computed else y


@dataclass(frozen=True, eq=False)
class Trace:
    """Interval values and adjoints of a network with L hidden layers (notation of Table 1).

    >>> network, box = significance.example()
    >>> [tuple(x.shape) for x in trace(network, box).n_bar]
    [(1, 2), (1, 2), (1, 2)]

    Attributes
    ----------
    k : L + 1 enclosures (..., width) before the activation; the last is the output y
    n : L + 1 enclosures of the nodes; n[0] is the input, n[l] the l-th hidden layer
    k_bar, n_bar : enclosures (..., outputs, width) of dy/dk and dy/dn, in the same order
    """

    k: list[Interval]
    n: list[Interval]
    k_bar: list[Interval]
    n_bar: list[Interval]


def values(
    network: nn.Sequential, box: Interval, computed: bool = False
) -> tuple[list[Interval], list[Interval]]:
    """Enclosures k and n of `Trace`, in float64; a forward pass only.

    >>> network, box = significance.example()
    >>> k, n = values(network, box)
    >>> n[1].hi  # of the first hidden layer, Table 1
    tensor([1.6934, 1.3974], dtype=torch.float64)
    """
    linear, activation = layers_of(network)
    function, _ = ACTIVATIONS[activation]
    box = interval(box).to(torch.float64)
    inputs = linear[0].in_features
    if box.ndim == 0 or box.shape[-1] != inputs:
        raise ValueError(f"box must be of shape (..., {inputs}), got {tuple(box.shape)}")
    rows = box.reshape(-1, inputs)
    k, n = [affine(rows, linear[0], computed)], [rows]
    for layer in linear[1:]:
        y = function(k[-1])
        if computed:
            y = widened(y, activation_error(k[-1], activation, layer.weight.dtype))
        n.append(y)
        k.append(affine(y, layer, computed))
    shape = box.shape[:-1]
    return [x.reshape(*shape, -1) for x in k], [x.reshape(*shape, -1) for x in n]


def forward(network: nn.Sequential, box: Interval, *, computed: bool = False) -> Interval:
    """Natural interval extension of the network, (..., inputs) -> (..., outputs).

    With `computed`, of what ``network(x)`` returns as well, rounding and all: see `rounding`.

    >>> network, box = significance.example()
    >>> y = forward(network, box)
    >>> y.lo, y.hi  # y of Table 1
    (tensor([1.3691], dtype=torch.float64), tensor([3.7032], dtype=torch.float64))
    """
    return values(network, box, computed)[0][-1].to(interval(box).dtype)


def trace(network: nn.Sequential, box: Interval, *, computed: bool = False) -> Trace:
    """Interval values and, by reverse mode, interval adjoints of every node.

    >>> network, box = significance.example()
    >>> trace(network, box).n_bar[0].mag  # |dy/dx| over the whole box
    tensor([[0.2359, 0.0177]], dtype=torch.float64)

    Parameters
    ----------
    network : `nn.Sequential` of Linear layers with one activation between each two
    box : (..., inputs), one or many boxes
    computed : enclose what the network and autograd return in the network's own dtype as well, for
        every x of that dtype in the box; see `rounding` for what that covers

    Returns
    -------
    Trace
        It encloses what real arithmetic gives for the network's weights; what floating point gives
        differs from that by its own rounding, and is enclosed only if `computed`.

    Raises
    ------
    TypeError, ValueError
        A network that is not of that form; a box of another shape.
    """
    linear, activation = layers_of(network)
    _, derivative = ACTIVATIONS[activation]
    k, n = values(network, box, computed)
    outputs = linear[-1].out_features
    one = torch.eye(outputs, dtype=k[-1].dtype, device=k[-1].device)
    k_bar = [interval(one.expand(*k[-1].shape[:-1], outputs, outputs))]
    n_bar = [_backward(k_bar[0], linear[-1], computed)]
    underflow = one.new_tensor(torch.finfo(linear[0].weight.dtype).tiny)
    for layer, before in zip(linear[-2::-1], k[-2::-1], strict=True):
        slope = derivative(before)
        if computed:
            slope = widened(slope, activation_error(before, activation, layer.weight.dtype))
        product = n_bar[-1] * slope.unsqueeze(-2)
        k_bar.append(widened(product, underflow) if computed else product)
        n_bar.append(_backward(k_bar[-1], layer, computed))
    dtype = interval(box).dtype
    k, n, k_bar, n_bar = ([x.to(dtype) for x in xs] for xs in (k, n, k_bar[::-1], n_bar[::-1]))
    return Trace(k, n, k_bar, n_bar)


def _backward(k_bar: Interval, layer: nn.Linear, computed: bool) -> Interval:
    y, weight = k_bar @ layer.weight.detach(), layer.weight.mT
    return widened(y, layer_error(k_bar, weight)) if computed else y


def mean_value(network: nn.Sequential, box: Interval) -> Interval:
    r"""Mean-value form f(m) + f'([x]) ([x] - m), cut with the natural extension.

    Its excess width falls with the square of the width of the box, the natural extension's only
    in proportion (Moore, Kearfott and Cloud, 2009, ch. 6).

    >>> network, box = significance.example()
    >>> forward(network, box).width, mean_value(network, box).width
    (tensor([2.3341], dtype=torch.float64), tensor([2.2818], dtype=torch.float64))
    """
    t = trace(network, box)
    middle = Interval(box.mid)
    shift = (box - middle).unsqueeze(-2)  # (..., 1, inputs)
    return forward(network, middle) + (t.n_bar[0] * shift).sum(-1) & t.k[-1]


def split(box: Interval, cells: int, weights: Tensor | None = None) -> Interval:
    """Cut one box into a grid of `cells`, halving the widest edge again and again.

    >>> split(Interval(torch.zeros(2), torch.tensor([4.0, 1.0])), 2).mid
    tensor([[1.0000, 0.5000],
            [3.0000, 0.5000]])

    Parameters
    ----------
    box : (inputs,)
    cells : a power of two
    weights : (inputs,), how much a unit of each edge counts, for example the adjoint's magnitude

    Returns
    -------
    Interval
        (cells, inputs); the cells share their faces and cover the box.

    Raises
    ------
    ValueError
        `cells` is not a power of two, or `box` not one bounded box.
    """
    require(cells >= 1 and cells & (cells - 1) == 0, "cells", cells, "a power of two")
    require(box.ndim == 1 and bool(box.mag.isfinite().all()), "box", box, "one bounded box")
    edges = box.hi.double() - box.lo.double()
    edges = (edges if weights is None else edges * weights.double()).tolist()
    pieces = [1] * len(edges)
    for _ in range(cells.bit_length() - 1):
        i = max(range(len(edges)), key=lambda j: edges[j] / pieces[j])
        pieces[i] *= 2
    lows, highs = [], []
    for lo, hi, p in zip(box.lo, box.hi, pieces, strict=True):
        fraction = torch.arange(1, p, dtype=box.dtype, device=box.device) / p
        inner = (lo * (1 - fraction) + hi * fraction).clamp(lo, hi).cummax(0).values
        cuts = torch.cat([lo[None], inner, hi[None]])
        lows.append(cuts[:-1])
        highs.append(cuts[1:])
    grid = [
        torch.stack([g.flatten() for g in torch.meshgrid(*ends, indexing="ij")], dim=-1)
        for ends in (lows, highs)
    ]
    return Interval(*grid)

"""Networks: multilayer perceptrons, plain or residual, and the DeepONet of DeepSVM's eq. 9.

They know no model: numbers in, numbers out, on values and on jets.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._validate import require
from ..arithmetic import jets
from ..arithmetic.jets import Jet, Stack


def plain(*sizes: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """The plain multilayer perceptron that intervals and pruning take apart.

    >>> sum(w.numel() for w in plain(2, 3, 1).parameters())  # (2 + 1) 3 + (3 + 1) 1
    13

    Parameters
    ----------
    sizes : numbers of inputs, of nodes in each hidden layer, of outputs

    Raises
    ------
    ValueError
        Fewer than two sizes, or one below one.
    """
    require(len(sizes) >= 2 and min(sizes) >= 1, "sizes", sizes, "at least two, each at least 1")
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


class MLP(nn.Module):
    """A multilayer perceptron, h -> h + act(W h + b) between hidden layers of equal width.

    >>> net = MLP(2, 1, width=3, hidden=2)
    >>> sum(w.numel() for w in net.parameters())  # (2 + 1) 3 + (3 + 1) 3 + (3 + 1) 1
    25

    Parameters
    ----------
    n_in, n_out : numbers of inputs and outputs
    width : nodes in each hidden layer
    hidden : number of hidden layers, >= 1
    activation : "gelu", "silu" or "tanh"
    residual : add each hidden layer's input to its output (from the second on)

    Raises
    ------
    ValueError
        A size below one or an unknown activation.
    """

    def __init__(self, n_in, n_out, *, width=128, hidden=4, activation="gelu", residual=True):
        super().__init__()
        for name, size in dict(n_in=n_in, n_out=n_out, width=width, hidden=hidden).items():
            require(size >= 1, name, size, "at least 1")
        require(
            activation in jets.ACTIVATIONS, "activation", activation, f"in {set(jets.ACTIVATIONS)}"
        )
        sizes = [n_in] + [width] * hidden + [n_out]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.activation, self.residual = activation, residual

    def forward(self, h: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out), by the same code as `jet`, on one channel."""
        return self.jet(Stack(h[None], (), ())).data[0]

    def jet(self, h: Stack) -> Stack:
        """Stacked channels (channels, ..., n_in) -> (channels, ..., n_out)."""
        last = self.layers[-1]
        out = self.hidden_jet(h).data @ last.weight.T
        # a constant has no derivatives
        return h._replace(data=torch.cat([out[:1] + last.bias, out[1:]]))

    def hidden_jet(self, h: Stack) -> Stack:
        """Stacked channels of the last hidden layer, (channels, ..., width)."""
        *hidden, _ = self.layers
        for i, layer in enumerate(hidden):
            residual = self.residual and i > 0
            h = jets.layer(h, layer.weight, layer.bias, self.activation, residual)
        return h


class Rescale(nn.Module):
    """The linear map of [low, high] to [-1, 1], for values and for stacked channels.

    >>> Rescale([(0.0, 4.0)])(torch.tensor([1.0]))
    tensor([-0.5000])

    Parameters
    ----------
    ranges : (low, high) of each of the n inputs; (..., n) is mapped to (..., n)
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, ranges: Sequence[tuple[float, float]]):
        super().__init__()
        low, high = torch.tensor(ranges, dtype=torch.get_default_dtype()).T
        self.register_buffer("scale", 2 / (high - low))
        self.register_buffer("shift", -(high + low) / (high - low))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.scale + self.shift

    def jet(self, h: Stack) -> Stack:
        out = h.data * self.scale
        out[0] += self.shift
        return h._replace(data=out)


class DeepONet(nn.Module):
    r"""N(mu, y) = <b(mu), t(y)>: branch on parameters mu, trunk on coordinates y (eq. 9).

    >>> net = DeepONet([(0.0, 1.0)] * 5, [(0.0, 1.0)] * 3, latent=4, width=8, hidden=1)
    >>> net.jet(torch.rand(6, 1, 5), [Jet(torch.rand(7))] * 3).value.shape
    torch.Size([6, 7])

    Parameters
    ----------
    branch_ranges, trunk_ranges : (low, high) of every input, rescaled to [-1, 1]
    latent : length p of the two embeddings
    width, hidden, activation : of both residual MLPs

    Raises
    ------
    ValueError
        A size below one or an unknown activation.
    """

    def __init__(
        self, branch_ranges, trunk_ranges, *, latent=128, width=128, hidden=4, activation="gelu"
    ):
        super().__init__()
        shape = dict(width=width, hidden=hidden, activation=activation)
        self.branch_scale, self.trunk_scale = Rescale(branch_ranges), Rescale(trunk_ranges)
        self.branch = MLP(len(branch_ranges), latent, **shape)
        self.trunk = MLP(len(trunk_ranges), latent, **shape)
        # <b, t> starts at order one whatever the length of the embeddings.
        self.scale = latent**-0.5

    def embed(self, mu: Tensor) -> Tensor:
        """Branch: (..., n) -> (..., latent)."""
        return self.branch(self.branch_scale(mu)) * self.scale

    def basis(self, coordinates: Sequence[Jet]) -> Stack:
        """Trunk: jets of the coordinates -> stacked channels (channels, ..., latent)."""
        return self.trunk.jet(self.trunk_scale.jet(jets.stack(coordinates)))

    def split(self, mu: Tensor, coordinates: Sequence[Jet]) -> tuple[Tensor, Stack, Tensor]:
        """N = <b W, h> + <b, c> with the trunk's last layer t = W h + c moved to the branch.

        Where there are fewer parameter vectors than channels of points, that is cheaper. Returns
        b W (..., width), the jet of h (channels, ..., width) and <b, c> (...).
        """
        b, last = self.embed(mu), self.trunk.layers[-1]
        h = self.trunk.hidden_jet(self.trunk_scale.jet(jets.stack(coordinates)))
        return b @ last.weight, h, b @ last.bias

    def jet(self, mu: Tensor, coordinates: Sequence[Jet]) -> Jet:
        """N and its derivatives; `mu` (..., n) broadcasts against the coordinates (...).

        M parameter vectors of shape (M, 1, n) against P points of shape (P,) give (M, P): the
        branch is evaluated M times, the trunk P times, and one matrix product does the rest.
        Points with their own parameters, (P, n) against (P,), give (P,).
        """
        return self.pair(self.embed(mu), self.basis(coordinates))

    def pair(self, b: Tensor, t: Stack) -> Jet:
        """<b, t> from what `embed` and `basis` return."""
        if b.ndim == 3 and b.shape[1] == 1 and t.data.ndim == 3:
            channels, points, latent = t.data.shape
            product = b[:, 0] @ t.data.reshape(channels * points, latent).T  # (M, channels P)
            return t.jet(product.view(-1, channels, points).unbind(1))
        return t.jet((b * t.data).sum(-1).unbind(0))

r"""Second-order Taylor channels: the seven numbers that the pricing equation needs, in one pass.

A jet carries a function of (x, nu, tau) together with those of its derivatives that occur in
eq. 5 of DeepSVM,

.. math:: (u,\ u_x,\ u_\nu,\ u_\tau,\ u_{xx},\ u_{x\nu},\ u_{\nu\nu}),

through sums, products and elementary functions by the chain rule. Nothing is differentiated
twice by automatic differentiation: one forward pass gives all channels, one backward pass the
gradient in the weights. Through layers the channels travel stacked, as one tensor of shape
(7, ..., width), so that a linear layer is a single matrix product; six, where no jet has a
derivative in tau, and one, where only values are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = ("value", "x", "nu", "tau", "xx", "xnu", "nunu")


def _is(a, number: int) -> bool:
    return isinstance(a, int) and a == number


def _add(a, b):
    return b if _is(a, 0) else a if _is(b, 0) else a + b


def _mul(a, b):
    if _is(a, 0) or _is(b, 0):
        return 0
    return b if _is(a, 1) else a if _is(b, 1) else a * b


@dataclass(frozen=True, eq=False, slots=True)
class Jet:
    """A function and its derivatives; the integer 0 stands for a channel that is zero everywhere.

    Channels broadcast against each other. Jets add and multiply with jets, tensors and numbers.
    """

    value: Tensor
    x: Tensor | int = 0
    nu: Tensor | int = 0
    tau: Tensor | int = 0
    xx: Tensor | int = 0
    xnu: Tensor | int = 0
    nunu: Tensor | int = 0

    def __iter__(self):
        return (getattr(self, name) for name in CHANNELS)

    def __add__(self, other) -> "Jet":
        if not isinstance(other, Jet):
            return Jet(_add(self.value, other), *tuple(self)[1:])
        return Jet(*(_add(a, b) for a, b in zip(self, other, strict=True)))

    def __mul__(self, other) -> "Jet":
        if not isinstance(other, Jet):
            return Jet(*(_mul(a, other) for a in self))
        a, b = self, other
        first = [_add(_mul(a.value, q), _mul(p, b.value)) for p, q in zip(a, b, strict=True)]
        cross = _add(_mul(a.x, b.nu), _mul(a.nu, b.x))
        return Jet(
            _mul(a.value, b.value),
            *first[1:4],
            _add(first[4], _mul(2, _mul(a.x, b.x))),
            _add(first[5], cross),
            _add(first[6], _mul(2, _mul(a.nu, b.nu))),
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> "Jet":
        return self * -1.0

    def __sub__(self, other) -> "Jet":
        return self + (-other)

    def chain(self, f: Tensor, f1: Tensor, f2: Tensor) -> "Jet":
        """f(self), given the values of f, f', f'' at ``self.value``."""
        curvature = _mul(f2, self.x), _mul(f2, self.nu)
        return Jet(
            f,
            *(_mul(f1, a) for a in (self.x, self.nu, self.tau)),
            _add(_mul(f1, self.xx), _mul(curvature[0], self.x)),
            _add(_mul(f1, self.xnu), _mul(curvature[0], self.nu)),
            _add(_mul(f1, self.nunu), _mul(curvature[1], self.nu)),
        )


def coordinates(x: Tensor, nu: Tensor, tau: Tensor) -> tuple[Jet, Jet, Jet]:
    """The three coordinates as jets: each has derivative one with respect to itself."""
    return Jet(x, x=1), Jet(nu, nu=1), Jet(tau, tau=1)


def exp(a: Jet) -> Jet:
    f = torch.exp(a.value)
    return a.chain(f, f, f)


def log(a: Jet) -> Jet:
    f1 = 1 / a.value
    return a.chain(torch.log(a.value), f1, -f1 * f1)


def sqrt(a: Jet) -> Jet:
    f = torch.sqrt(a.value)
    f1 = 0.5 / f
    return a.chain(f, f1, -0.5 * f1 / a.value)


def reciprocal(a: Jet) -> Jet:
    f = 1 / a.value
    return a.chain(f, -f * f, 2 * f * f * f)


def tanh(a: Jet) -> Jet:
    f = torch.tanh(a.value)
    f1 = 1 - f * f
    return a.chain(f, f1, -2 * f * f1)


def sigmoid(a: Jet) -> Jet:
    f = torch.sigmoid(a.value)
    f1 = f * (1 - f)
    return a.chain(f, f1, f1 * (1 - 2 * f))


def softplus(a: Jet) -> Jet:
    f1 = torch.sigmoid(a.value)
    return a.chain(torch.nn.functional.softplus(a.value), f1, f1 * (1 - f1))


def compose(f, a: Jet, b: Jet) -> Jet:
    """f(a, b) from ``f = (value, a, b, aa, ab, bb)``, f and its partial derivatives at (a, b)."""
    value, fa, fb, faa, fab, fbb = f

    def second(ai, aj, aij, bi, bj, bij):
        terms = (
            _mul(fa, aij),
            _mul(fb, bij),
            _mul(faa, _mul(ai, aj)),
            _mul(fbb, _mul(bi, bj)),
            _mul(fab, _add(_mul(ai, bj), _mul(aj, bi))),
        )
        total = 0
        for term in terms:
            total = _add(total, term)
        return total

    return Jet(
        value,
        *(_add(_mul(fa, getattr(a, c)), _mul(fb, getattr(b, c))) for c in CHANNELS[1:4]),
        second(a.x, a.x, a.xx, b.x, b.x, b.xx),
        second(a.x, a.nu, a.xnu, b.x, b.nu, b.xnu),
        second(a.nu, a.nu, a.nunu, b.nu, b.nu, b.nunu),
    )


def stack(jets: Sequence[Jet]) -> Tensor:
    """Jets side by side as the input of a layer: (channels, ..., len(jets)).

    Seven channels; six, when no jet carries a derivative in tau; one (the value), when none
    carries any: a price alone then costs a plain forward pass.
    """
    values = torch.broadcast_tensors(*(j.value for j in jets))
    if all(_is(c, 0) for j in jets for c in tuple(j)[1:]):
        return torch.stack(values, dim=-1)[None]
    like = values[0]
    rows = [
        torch.stack(
            [torch.as_tensor(c, dtype=like.dtype, device=like.device).expand_as(like) for c in row],
            dim=-1,
        )
        for name, row in zip(CHANNELS, zip(*jets, strict=True), strict=True)
        if name != "tau" or not all(_is(c, 0) for c in row)
    ]
    return torch.stack(rows)


def unstack(channels: Sequence[Tensor] | Tensor) -> Jet:
    """The jet of the channels given, seven, six or one: the inverse of `stack` for one output."""
    if len(channels) == 6:
        value, x, nu, *second = channels
        return Jet(value, x, nu, 0, *second)
    return Jet(*channels)


def gelu(z: Tensor) -> tuple[Tensor, ...]:
    """z Phi(z) and its first three derivatives."""
    cdf = torch.special.ndtr(z)
    pdf = torch.exp(-0.5 * z * z) * 0.3989422804014327
    return z * cdf, cdf + z * pdf, pdf * (2 - z * z), pdf * z * (z * z - 4)


def silu(z: Tensor) -> tuple[Tensor, ...]:
    """z sigmoid(z) and its first three derivatives."""
    s = torch.sigmoid(z)
    s1 = s * (1 - s)
    s2 = s1 * (1 - 2 * s)
    return z * s, s + z * s1, 2 * s1 + z * s2, 3 * s2 + z * s1 * (1 - 6 * s1)


def tanh_layer(z: Tensor) -> tuple[Tensor, ...]:
    """tanh(z) and its first three derivatives."""
    t = torch.tanh(z)
    t1 = 1 - t * t
    return t, t1, -2 * t * t1, t1 * (6 * t * t - 2)


ACTIVATIONS = {
    "gelu": (torch.nn.functional.gelu, gelu),
    "silu": (torch.nn.functional.silu, silu),
    "tanh": (torch.tanh, tanh_layer),
}
"""By name: the activation, and the function that returns it with its first three derivatives."""


def layer(h: Tensor, weight: Tensor, bias: Tensor, name: str, residual: bool = False) -> Tensor:
    """act(h W' + b), plus h if `residual`, on the channels that `stack` makes: (channels, ..., n).

    With derivatives it can be differentiated once, and the backward pass is written out below:
    it takes a third of the passes over memory that automatic differentiation of the chain rule
    would. On a value alone it is the plain layer, differentiable any number of times.
    """
    plain, derivatives = ACTIVATIONS[name]
    if len(h) == 1:
        out = plain(h @ weight.T + bias)
        return h + out if residual else out
    return _Layer.apply(h, weight, bias, derivatives, residual)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor, derivatives, residual) -> Tensor:
        z = h @ weight.T
        ctx.save_for_backward(h, weight, bias, z)
        ctx.derivatives, ctx.residual = derivatives, residual
        f, f1, f2, _ = derivatives(z[0] + bias)
        out = torch.addcmul(h, z, f1) if residual else z * f1
        out[0] = h[0] + f if residual else f
        zx, znu = z[1], z[2]
        bent = f2 * zx
        out[-3].addcmul_(bent, zx)
        out[-2].addcmul_(bent, znu)
        out[-1].addcmul_(f2 * znu, znu)
        return out

    @staticmethod
    def backward(ctx, g: Tensor):
        if torch.is_grad_enabled():  # someone asked for create_graph
            raise RuntimeError("a jet's channels can be differentiated once, not twice")
        h, weight, bias, z = ctx.saved_tensors
        _, f1, f2, f3 = ctx.derivatives(z[0] + bias)
        to_z = g * f1
        zx, znu = z[1], z[2]
        gxx, gxnu, gnunu = g[-3:]
        # The first-order channels meet the curvature twice in xx and nunu, once in xnu.
        to_x = (2 * gxx * zx).addcmul_(gxnu, znu)
        to_nu = (2 * gnunu * znu).addcmul_(gxnu, zx)
        to_z[1].addcmul_(f2, to_x)
        to_z[2].addcmul_(f2, to_nu)
        slope = g[1] * zx
        for a, b in zip(g[2:], z[2:], strict=True):
            slope.addcmul_(a, b)
        bend = (to_x * zx).addcmul_(to_nu, znu)
        to_z[0].addcmul_(f2, slope).addcmul_(f3, bend, value=0.5)
        rows = to_z.flatten(0, -2)
        to_h = None
        if ctx.needs_input_grad[0]:
            to_h = torch.addmm(g.flatten(0, -2), rows, weight) if ctx.residual else rows @ weight
            to_h = to_h.view_as(h)
        to_bias = to_z[0].flatten(0, -2).sum(0)
        to_weight = (h.flatten(0, -2).T @ rows).T  # far faster this way for few inputs
        return to_h, to_weight, to_bias, None, None

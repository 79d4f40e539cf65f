r"""Jets: a function together with the derivatives that a pricing equation names, in one pass.

A jet carries a value, its first derivatives along named directions, and one second derivative for
each of some *pairs* of them; for a model with spot and one variance the pairs are (x, x), (x, nu),
(nu, nu) and the channels are those of DeepSVM's eq. 5,

.. math:: (u,\ u_x,\ u_\nu,\ u_\tau,\ u_{xx},\ u_{x\nu},\ u_{\nu\nu}).

Sums, products and elementary functions act by the chain rule, so one forward pass gives all
channels and one backward pass the gradient in the weights. A channel called "xx" may carry any
operator u_xx + (first derivatives), because that obeys the same rules: `equation` uses it. Through
layers the channels travel stacked, as one tensor (channels, ..., width), so that a linear layer is
a single matrix product. Only channels that some jet carries are stacked: a price alone costs a
plain forward pass.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pairs = tuple[tuple[str, str], ...]
ONE_FACTOR: Pairs = (("x", "x"), ("x", "nu"), ("nu", "nu"))
"""The second derivatives of a model with one variance."""


def _add(a, b):
    """a + b, where the integer 0 stands for nothing."""
    if type(a) is int and a == 0:
        return b
    return a if type(b) is int and b == 0 else a + b


def _mul(a, b):
    """a b, where the integers 0 and 1 cost nothing."""
    if type(a) is int:
        return b if a == 1 else 0 if a == 0 else a * b
    if type(b) is int:
        return a if b == 1 else 0 if b == 0 else a * b
    return a * b


class Jet:
    """A function's value and derivatives, which broadcast against each other.

    Jets add and multiply with jets, tensors and numbers. A derivative is read by its name,
    ``u.x``, ``u.xnu``; the integer 0 stands for one that vanishes everywhere.

    >>> x = Jet(torch.tensor(3.0), x=1)
    >>> (x * x).x, (x * x).xx
    (tensor(6.), 2)

    Parameters
    ----------
    value : Tensor
    pairs : the second derivatives to carry along, pairs of names of first derivatives
    derivatives : tensors by name, "x" or, of a pair, the two names joined: "xnu"
    """

    __slots__ = ("pairs", "parts", "value")

    def __init__(self, value: Tensor, *, pairs: Pairs = ONE_FACTOR, **derivatives):
        self.value, self.pairs = value, pairs
        self.parts = {k: d for k, d in derivatives.items() if type(d) is not int or d != 0}

    def _new(self, value, parts: dict) -> "Jet":
        new = object.__new__(Jet)
        new.value, new.pairs, new.parts = value, self.pairs, parts
        return new

    def __getattr__(self, name: str):
        if name in self.parts:
            return self.parts[name]
        if name == "tau" or any(name in (a, b, a + b) for a, b in self.pairs):
            return 0
        raise AttributeError(f"no derivative {name!r} among {sorted(self.parts)}")

    def part(self, name: str):
        """The derivative `name`, 0 if there is none.

        >>> Jet(torch.tensor(3.0), x=1).part("nu")
        0
        """
        return self.parts.get(name, 0)

    def clamp_min(self, low: float) -> "Jet":
        """The value not below `low`, the derivatives as they are: a guard, not a function.

        >>> Jet(torch.tensor(-1.0), x=1).clamp_min(0.0)
        Jet(0.0, {'x': 1})
        """
        return self._new(self.value.clamp_min(low), self.parts)

    def __repr__(self):
        return f"Jet({self.value}, {self.parts})"

    def __add__(self, other) -> "Jet":
        if not isinstance(other, Jet):
            return self._new(_add(self.value, other), self.parts)
        parts = dict(self.parts)
        for name, d in other.parts.items():
            _into(parts, name, d)
        return self._new(self.value + other.value, parts)

    def __mul__(self, other) -> "Jet":
        if not isinstance(other, Jet):
            return self._new(
                _mul(self.value, other), {k: _mul(v, other) for k, v in self.parts.items()}
            )
        mine, theirs, parts = self.parts, other.parts, {}
        for k in mine | theirs:
            left = _mul(mine[k], other.value) if k in mine else 0
            parts[k] = _add(left, _mul(self.value, theirs[k]) if k in theirs else 0)
        for p, q in self.pairs:
            if p in mine and q in theirs:
                cross = _mul(mine[p], theirs[q])
                _into(parts, p + q, _mul(2, cross) if p == q else cross)
            if p != q and q in mine and p in theirs:
                _into(parts, p + q, _mul(mine[q], theirs[p]))
        return self._new(self.value * other.value, parts)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> "Jet":
        return self * -1.0

    def __sub__(self, other) -> "Jet":
        return self + (-other)

    def __rsub__(self, other) -> "Jet":
        return -self + other

    def __truediv__(self, other: Tensor | float) -> "Jet":
        return self * (1 / other)

    def chain(self, f: Tensor, f1: Tensor, f2: Tensor) -> "Jet":
        """f(self), given the values of f, f', f'' at ``self.value``.

        >>> x = Jet(torch.tensor(2.0), x=1)
        >>> x.chain(x.value**3, 3 * x.value**2, 6 * x.value)  # x^3
        Jet(8.0, {'x': tensor(12.), 'xx': tensor(12.)})
        """
        mine = self.parts
        parts = {name: _mul(f1, d) for name, d in mine.items()}
        bent = {p: _mul(f2, mine[p]) for p, q in self.pairs if p in mine and q in mine}
        for p, q in self.pairs:
            if p in bent and q in mine:
                _into(parts, p + q, _mul(bent[p], mine[q]))
        return self._new(f, parts)


def _into(parts: dict, name: str, term) -> None:
    parts[name] = parts[name] + term if name in parts else term


def coordinates(x: Tensor, nu: Tensor, tau: Tensor) -> tuple[Jet, Jet, Jet]:
    """(x, nu, tau) as jets: each has derivative one with respect to itself.

    >>> x, nu, tau = coordinates(*torch.tensor([0.0, 0.04, 1.0]))
    >>> (x * nu).xnu, (nu * nu).nunu, (x * tau).tau
    (1, 2, tensor(0.))
    """
    return Jet(x, x=1), Jet(nu, nu=1), Jet(tau, tau=1)


# Elementary functions: of tensors they are torch's own.


def exp(a):
    """e^a, of a tensor or a jet; same shape.

    >>> exp(Jet(torch.tensor(0.0), x=1))
    Jet(1.0, {'x': tensor(1.), 'xx': tensor(1.)})
    """
    if not isinstance(a, Jet):
        return torch.exp(a)
    f = torch.exp(a.value)
    return a.chain(f, f, f)


def expm1(a):
    """e^a - 1, of a tensor or a jet, exact for small a; same shape.

    >>> expm1(Jet(torch.tensor(0.0), x=1))
    Jet(0.0, {'x': tensor(1.), 'xx': tensor(1.)})
    """
    if not isinstance(a, Jet):
        return torch.expm1(a)
    f1 = torch.exp(a.value)
    return a.chain(torch.expm1(a.value), f1, f1)


def log(a):
    """ln a, of a tensor or a jet; same shape.

    >>> u = log(Jet(torch.tensor(2.0), x=1))
    >>> u.x, u.xx  # 1/2, -1/4
    (tensor(0.5000), tensor(-0.2500))
    """
    if not isinstance(a, Jet):
        return torch.log(a)
    f1 = torch.reciprocal(a.value)
    return a.chain(torch.log(a.value), f1, -f1 * f1)


def sqrt(a):
    """The square root of a, a tensor or a jet; same shape.

    >>> sqrt(Jet(torch.tensor(0.25), x=1))
    Jet(0.5, {'x': tensor(1.), 'xx': tensor(-2.)})
    """
    if not isinstance(a, Jet):
        return torch.sqrt(a)
    f = torch.sqrt(a.value)
    f1 = 0.5 * torch.reciprocal(f)
    return a.chain(f, f1, -0.5 * f1 / a.value)


def power(a, exponent: float):
    """a to the power of a number, of a positive tensor or jet; same shape.

    >>> power(Jet(torch.tensor(4.0), x=1), 1.5)
    Jet(8.0, {'x': tensor(3.), 'xx': tensor(0.3750)})
    """
    if exponent == 1:
        return a
    if not isinstance(a, Jet):
        return a**exponent
    f1, f2 = (exponent * a.value ** (exponent - 1), exponent * (exponent - 1))
    return a.chain(a.value**exponent, f1, f2 * a.value ** (exponent - 2))


def tanh(a):
    """tanh a, of a tensor or a jet; same shape.

    >>> u = tanh(Jet(torch.tensor(0.5).atanh(), x=1))
    >>> u.x, u.xx  # 1 - t^2 and -2 t (1 - t^2) at t = 1/2
    (tensor(0.7500), tensor(-0.7500))
    """
    if not isinstance(a, Jet):
        return torch.tanh(a)
    f = torch.tanh(a.value)
    f1 = 1 - f * f
    return a.chain(f, f1, -2 * f * f1)


def sigmoid(a):
    """1/(1 + e^{-a}), of a tensor or a jet; same shape.

    >>> sigmoid(Jet(torch.tensor(0.0), x=1))
    Jet(0.5, {'x': tensor(0.2500), 'xx': tensor(0.)})
    """
    if not isinstance(a, Jet):
        return torch.sigmoid(a)
    f = torch.sigmoid(a.value)
    f1 = f * (1 - f)
    return a.chain(f, f1, f1 * (1 - 2 * f))


def softplus(a):
    """ln(1 + e^a), of a tensor or a jet; same shape.

    >>> u = softplus(Jet(torch.tensor(0.0), x=1))
    >>> u.value, u.x, u.xx  # ln 2, 1/2, 1/4
    (tensor(0.6931), tensor(0.5000), tensor(0.2500))
    """
    if not isinstance(a, Jet):
        return torch.nn.functional.softplus(a)
    f1 = torch.sigmoid(a.value)
    return a.chain(torch.nn.functional.softplus(a.value), f1, f1 * (1 - f1))


def compose(f, a: Jet, b: Jet) -> Jet:
    """f(a, b) from ``f = (value, a, b, aa, ab, bb)``, f and its partial derivatives at (a, b).

    >>> product = torch.tensor([6.0, 3.0, 2.0, 0.0, 1.0, 0.0])  # a b at (2, 3)
    >>> compose(product, Jet(2, x=1), Jet(3, nu=1)).xnu
    tensor(1.)
    """
    value, fa, fb, faa, fab, fbb = f
    da, db = a.parts, b.parts
    parts = {k: _add(_mul(fa, a.part(k)), _mul(fb, b.part(k))) for k in da | db}
    for p, q in a.pairs:
        for f2, left, right in ((faa, da, da), (fbb, db, db), (fab, da, db), (fab, db, da)):
            if p in left and q in right:
                _into(parts, p + q, _mul(f2, _mul(left[p], right[q])))
    return a._new(value, parts)


# Layers


class Stack(NamedTuple):
    """Jets side by side, as a layer takes them: all channels in one tensor.

    >>> stack([Jet(torch.tensor(2.0), x=1), Jet(torch.tensor(3.0), nu=1)]).names
    ('x', 'nu', 'xx', 'xnu', 'nunu')
    """

    data: Tensor  # (channels, ..., width)
    names: tuple[str, ...]  # of channels 1, 2, ...: first derivatives, then second ones
    pairs: Pairs

    @property
    def rows(self) -> tuple[tuple[int, int, int], ...]:
        """For each second derivative its channel and the channels of its two first ones.

        >>> stack([Jet(torch.tensor(2.0), x=1), Jet(torch.tensor(3.0), nu=1)]).rows
        ((3, 1, 1), (4, 1, 2), (5, 2, 2))
        """
        at = {name: row for row, name in enumerate(self.names, 1)}
        return tuple((at[p + q], at[p], at[q]) for p, q in self.pairs if p + q in at)

    def jet(self, channels: Sequence[Tensor] | Tensor) -> Jet:
        """The jet of other tensors in this stack's channels.

        >>> h = stack([Jet(torch.tensor(2.0), x=1)])
        >>> h.jet(torch.tensor([4.0, 4.0, 2.0])).xx  # of x^2
        tensor(2.)
        """
        value, *parts = channels
        return Jet(value, pairs=self.pairs, **dict(zip(self.names, parts, strict=True)))


def stack(jets: Sequence[Jet]) -> Stack:
    """Jets side by side: data of shape (channels, ..., len(jets)).

    The channels are those that some jet carries, and the pairs of the first derivatives among
    them, which a layer's curvature fills.

    >>> stack([Jet(torch.tensor(2.0), x=1)]).data[:, 0]  # value, x, xx
    tensor([2., 1., 0.])
    """
    pairs = jets[0].pairs
    seconds = [p + q for p, q in pairs]
    carried = {name for j in jets for name in j.parts}
    first = [n for n in dict.fromkeys([*sum(pairs, ()), *sorted(carried)]) if n in carried]
    first = [n for n in first if n not in seconds]
    second = [p + q for p, q in pairs if p + q in carried or {p, q} <= carried]
    names = (*first, *second)
    every = [d for j in jets for d in (j.value, *j.parts.values()) if isinstance(d, Tensor)]
    shape = every[0].shape
    if any(d.shape != shape for d in every):
        shape = torch.broadcast_shapes(*{d.shape for d in every})
    constant = {v: torch.full_like(every[0], v).expand(shape) for v in (0, 1)}
    rows = [j.value for j in jets] + [j.parts.get(name, 0) for name in names for j in jets]
    for i, d in enumerate(rows):
        if not isinstance(d, Tensor):
            rows[i] = constant[d] if d in constant else constant[1] * d
        elif d.shape != shape:
            rows[i] = d.expand(shape)
    data = torch.stack(rows).view(1 + len(names), len(jets), *shape).movedim(1, -1)
    return Stack(data.contiguous(), names, pairs)


def gelu(z: Tensor, order: int = 3) -> tuple[Tensor, ...]:
    """z Phi(z) and its first two or three derivatives, each of the shape of z.

    >>> gelu(torch.tensor(0.0), 2)  # the last is 2/sqrt(2 pi)
    (tensor(0.), tensor(0.5000), tensor(0.7979))
    """
    square, cdf = z * z, torch.special.ndtr(z)
    pdf = torch.exp(-0.5 * square) * 0.3989422804014327
    first = z * cdf, torch.addcmul(cdf, z, pdf), pdf * (2 - square)
    return first if order == 2 else (*first, pdf * z * (square - 4))


def silu(z: Tensor, order: int = 3) -> tuple[Tensor, ...]:
    """z sigmoid(z) and its first two or three derivatives, each of the shape of z.

    >>> silu(torch.tensor(0.0), 2)
    (tensor(0.), tensor(0.5000), tensor(0.5000))
    """
    s = torch.sigmoid(z)
    s1 = torch.addcmul(s, s, s, value=-1)
    s2 = torch.addcmul(s1, s1, s, value=-2)
    first = z * s, torch.addcmul(s, z, s1), torch.add(z * s2, s1, alpha=2)
    if order == 2:
        return first
    s3 = torch.addcmul(s1, s1, s1, value=-6)
    return *first, torch.add(z * s3, s2, alpha=3)


def tanh_layer(z: Tensor, order: int = 3) -> tuple[Tensor, ...]:
    """tanh(z) and its first two or three derivatives, each of the shape of z.

    >>> tanh_layer(torch.tensor(0.0))[3]
    tensor(-2.)
    """
    t = torch.tanh(z)
    t1 = 1 - t * t
    first = t, t1, -2 * t * t1
    return first if order == 2 else (*first, t1 * (6 * t * t - 2))


ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "gelu": (torch.nn.functional.gelu, gelu),
    "silu": (torch.nn.functional.silu, silu),
    "tanh": (torch.tanh, tanh_layer),
}
"""By name: the activation, and the function that returns it with its derivatives."""


def layer(h: Stack, weight: Tensor, bias: Tensor, name: str, residual: bool = False) -> Stack:
    """act(h W' + b), plus h if `residual`, on every channel: (channels, ..., n) -> (..., m).

    The backward pass is written out below: it takes a third of the passes over memory that
    automatic differentiation of the chain rule would. It batches (`torch.func.vmap`,
    ``is_grads_batched``) and can itself be differentiated, backward and forward, so Jacobians of
    residuals by weights are to be had and a jet can be taken to one order more.

    >>> h = stack([Jet(torch.tensor(0.0), x=1)])
    >>> layer(h, torch.tensor([[2.0]]), torch.tensor([0.0]), "silu").data[:, 0]  # silu(2 x) at 0
    tensor([0., 1., 2.])
    """
    plain, derivatives = ACTIVATIONS[name]
    data = h.data
    if len(data) == 1:
        out = plain(data @ weight.T + bias)
        return h._replace(data=data + out if residual else out)
    if torch.is_grad_enabled() and (data.requires_grad or weight.requires_grad):
        out, _ = _Layer.apply(data, weight, bias, derivatives, residual, h.rows)
    else:
        out, _ = _Layer.forward(data, weight, bias, derivatives, residual, h.rows)
    return h._replace(data=out)


def _accumulate(total: Tensor, a: Tensor, b: Tensor, value: float = 1.0) -> Tensor:
    """total + value a b in place; in two steps under torch.func, which batches no single one."""
    if torch._C._are_functorch_transforms_active():
        return total.add_(a * b, alpha=value)
    return total.addcmul_(a, b, value=value)


class _Layer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor, derivatives, residual, rows):
        z = h @ weight.T
        f, f1, f2 = derivatives(z[0] + bias, 2)
        out = torch.addcmul(h, z, f1) if residual else z * f1
        out[0] = h[0] + f if residual else f
        bent = {p: f2 * z[p] for _, p, _ in rows}
        for row, p, q in rows:
            _accumulate(out[row], bent[p], z[q])
        return out, z

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        h, weight, bias, ctx.derivatives, ctx.residual, ctx.rows = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(h, weight, bias, output[1])
        ctx.save_for_forward(h, weight, bias, output[1])

    @staticmethod
    def backward(ctx, g: Tensor, _):
        h, weight, bias, z = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone asked for create_graph: z must know its history
            z = h @ weight.T
        _, f1, f2, f3 = ctx.derivatives(z[0] + bias)
        to_z = g * f1
        # A first derivative meets the curvature in every pair it belongs to, twice in a square.
        to: dict[int, Tensor] = {}
        for row, p, q in ctx.rows:
            for a, b in ((p, q), (q, p)):
                to[a] = _accumulate(to[a], g[row], z[b]) if a in to else g[row] * z[b]
        for a, value in to.items():
            _accumulate(to_z[a], f2, value)
        slope = g[1] * z[1]
        for a, b in zip(g[2:], z[2:], strict=True):
            _accumulate(slope, a, b)
        _accumulate(to_z[0], f2, slope)
        if to:
            bend = sum(value * z[a] for a, value in to.items())
            _accumulate(to_z[0], f3, bend, 0.5)
        rows = to_z.reshape(-1, to_z.shape[-1])
        to_h = None
        if ctx.needs_input_grad[0]:
            g = g.reshape(rows.shape)
            to_h = torch.addmm(g, rows, weight) if ctx.residual else rows @ weight
            to_h = to_h.view(h.shape)
        to_bias = to_z[0].reshape(-1, to_z.shape[-1]).sum(0)
        to_weight = (h.reshape(-1, h.shape[-1]).T @ rows).T  # far faster this way for few inputs
        return to_h, to_weight, to_bias, None, None, None

    @staticmethod
    def jvp(ctx, dh, dweight, dbias, *_):
        h, weight, bias, z = ctx.saved_tensors
        _, f1, f2, f3 = ctx.derivatives(z[0] + bias)
        dz = torch.zeros_like(z) if dh is None else dh @ weight.T
        dz = dz if dweight is None else dz + h @ dweight.T
        d0 = dz[0] if dbias is None else dz[0] + dbias
        out = dz * f1 + z * (f2 * d0)
        second = {row: f3 * d0 * z[p] * z[q] + f2 * (dz[p] * z[q] + z[p] * dz[q])
                  for row, p, q in ctx.rows}  # fmt: skip
        rows = [f1 * d0, *(out[i] + second.get(i, 0) for i in range(1, len(z)))]
        out = torch.stack(rows)
        return (out if dh is None or not ctx.residual else out + dh), None

r"""The error of an operator, learned from single paths: a second network, and no path is asked for.

`correction` averages samples :math:`Y = \tau e^{-rs} R(X_s, \nu_s, \tau - s)` of the error
:math:`e = \hat u - u` of *one* option. A least-squares fit of Y over many options, one path each,
tends to the same conditional mean, e, for all of them (Longstaff and Schwartz 2001). The fit keeps
the ansatz: N becomes N + M with a small network M, which changes the price by
:math:`\hat u_N M`, so that M minimises

.. math:: E\big[W_0\,(Y + \hat u_N M)^2\big]
          + \lambda\,E\big[W_1\,(Y_x + \partial_x(\hat u_N M))^2\big] .

The second term is the pathwise derivative as a second label (Sobolev training). Samples differ in
size by orders of magnitude from option to option; the weights W are the inverse of their local
mean square plus a floor. What comes out is an operator: its bounds hold, its derivatives are jets,
and its own residual along paths says what is left.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._validate import require
from ..arithmetic import jets
from ..arithmetic.jets import Jet, Stack
from ..models.model import as_states
from ..training import Phase, train
from . import collocation
from .ansatz import ANSATZ, At
from .collocation import Points
from .correction import require_identity, samples
from .networks import MLP
from .operator import Config, Operator

_ROWS = 2**13  # samples evaluated at a time
_FLOOR = 0.15  # of the labels' RMS: below it a smaller error is of no more use


class Second(nn.Module):
    """M: a perceptron on what the first network knows, standardised, its output times `scale`.

    >>> sum(w.numel() for w in Second(12, 4, 1).parameters())  # (12 + 1) 4 + (4 + 1) 1
    57

    Parameters
    ----------
    inputs : their number; width, hidden : of a `networks.MLP`
    """

    mean: Tensor
    spread: Tensor
    scale: Tensor

    def __init__(self, inputs: int, width: int, hidden: int):
        super().__init__()
        self.net = MLP(inputs, 1, width=width, hidden=hidden, activation="silu")
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.register_buffer("scale", torch.ones(()))

    @property
    def shape(self) -> tuple[int, int]:
        """Width and number of hidden layers."""
        return len(self.net.layers[0].weight), len(self.net.layers) - 1

    def jet(self, h: Stack) -> Stack:
        """Stacked channels (channels, ..., inputs) -> (channels, ...)."""
        data = torch.cat([h.data[:1] - self.mean, h.data[1:]]) / self.spread
        return h._replace(data=self.net.jet(h._replace(data=data)).data[..., 0] * self.scale)


class Learned(Operator):
    """An operator with N + M_1 + M_2 + ... for N: the errors that `fit` has learned, in its ansatz.

    Prices, Greeks, residuals and `weights.save` are those of `Operator`. Each M sees the features,
    and the hidden layers of the first network where that is a perceptron.

    >>> one = Learned(operators.PRESETS["sound"], [(8, 1)])
    >>> one.seconds[0].net.layers[0].weight.shape  # 12 features, four layers of 96
    torch.Size([8, 396])

    Parameters
    ----------
    config : of the first network
    shapes : (width, hidden) of each M
    """

    seconds: Any  # nn.ModuleList of Second

    def __init__(self, config: Config, shapes: Sequence[tuple[int, int]] = ()):
        super().__init__(config)
        size = self._similarity_size()
        if isinstance(self.network, MLP):
            size += config.width * config.hidden
        self.seconds = nn.ModuleList(Second(size, *shape) for shape in shapes)
        self.to(getattr(torch, config.dtype))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(width, hidden) of each M."""
        return [second.shape for second in self.seconds]

    def correction(self, at: At, embedded: Tensor | None = None) -> Jet:
        """N + M_1 + M_2 + ... as a jet."""
        known, last = knows(self, at)
        if last is None:
            n = super().correction(at, embedded)
        else:  # the first network's output costs one more row
            head: Any = self.network.layers[-1]  # type: ignore[index]
            out = (last.data @ head.weight.T)[..., 0]
            n = last.jet(torch.cat([out[:1] + head.bias, out[1:]]).unbind(0))
        for second in self.seconds:
            more = second.jet(known)
            n = n + more.jet(more.data.unbind(0))
        return n


def knows(operator: Operator, at: At) -> tuple[Stack, Stack | None]:
    """What a second network sees at `at`, and the last hidden layer of the first, if it has one.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> at = ansatz.At(*map(Jet, torch.tensor([[0.0], [0.04], [1.0]], dtype=torch.float64)), p)
    >>> known, last = operators.learned.knows(weights.load("sound"), at)
    >>> known.data.shape[-1], last.data.shape[-1]
    (396, 96)
    """
    h = jets.stack(operator._features(at))
    if not isinstance(operator.network, MLP):
        return h, None
    network, found = operator.network, [h.data]
    for i, layer in enumerate(network.layers[:-1]):
        residual = network.residual and i > 0
        h = jets.layer(h, layer.weight, layer.bias, network.activation, residual)
        found.append(h.data)
    return h._replace(data=torch.cat(found, -1)), h


class Labels(NamedTuple):
    r"""Of each option one sample, and how the price answers to N; each (n,).

    >>> sound = weights.load("sound")
    >>> labels = operators.learned.label(sound, operators.learned.draw(sound, 4), slopes=True)
    >>> labels.value.shape, bool(labels.tangent.min() >= 0)  # more variance, a higher price
    (torch.Size([4]), True)
    """

    value: Tensor  # Y, in units of strike; its mean is the error of the price
    slope: Any  # Y_x along the same path, whose mean is the error of u_x; or None
    tangent: Tensor  # du/dN
    bend: Tensor  # d^2 u/dN dx

    def first(self, count: int) -> "Labels":
        """Those of the first options.

        >>> Labels(*torch.zeros(4, 3)).first(2).value
        tensor([0., 0.])
        """
        return Labels(*(None if v is None else v[:count] for v in self))  # type: ignore[arg-type]


def draw(operator: Operator, count: int, *, seed: int = 0, visited: float = 0.25) -> Points:
    """Options to learn on: uniform over the model's domain, and a share where its paths go.

    A quarter of the parameters lie near the edge of the domain's condition. The second share is
    drawn as for training (`collocation.draw_similar`), from the operator's own, wider domain: the
    paths of a repetition leave the one that is judged.

    >>> points = draw(weights.load("sound"), 8)
    >>> points.x.shape, points.x.dtype
    (torch.Size([8]), torch.float64)

    Raises
    ------
    ValueError
        `count` below one, a share outside [0, 1].
    """
    require(isinstance(count, int) and count >= 1, "count", count, "a whole number, at least 1")
    require(0 <= visited <= 1, "visited", visited, "in [0, 1]")
    c, generator = operator.config, torch.Generator().manual_seed(seed)
    inner, away = operator.model.domain, round(visited * count)
    inner = inner | {"tau": (c.domain["tau"][0], inner["tau"][1])}
    options: dict = dict(model=operator.model, edge_share=0.25, generator=generator)
    parts = []
    if count > away:
        parts.append(collocation.draw(count - away, domain=inner, x_map="uniform", **options))
    if away:
        options |= dict(spread=c.spread, tau_power=c.tau_power, domain=c.domain)
        parts.append(collocation.draw_similar(away, **options))
    joined = {k: torch.cat([part.tensors()[k] for part in parts]) for k in parts[0].tensors()}
    mixed = torch.randperm(count, generator=generator)
    return parts[0].with_tensors({k: v[mixed] for k, v in joined.items()})


def label(
    operator: Operator, points: Points, *, steps: int = 8, slopes: bool = False, seed: int = 0
) -> Labels:
    """One path for each option: the sample of the error, its slope in x if wanted, the tangent.

    In the operator's dtype and on its device. Single precision will do: its rounding is noise, a
    hundredth of what a path brings.

    >>> sound = weights.load("sound")
    >>> labels = label(sound, draw(sound, 64), seed=1)
    >>> bool(labels.value.abs().max() < 1e-3), labels.slope
    (True, None)

    Parameters
    ----------
    points : (n,) options with parameters of their own
    steps : time steps from today to the time at which a path meets the residual

    Raises
    ------
    ValueError
        The identity does not hold for this operator (`correction.require_identity`), a grid of
        points, no step.
    """
    require_identity(operator)
    require(not points.grid, "points", "a grid", "with parameters of their own")
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "a whole number, at least 1")
    generator, found = torch.Generator().manual_seed(seed), []
    for piece in points.chunks(_ROWS):
        size = (len(piece.x), 2 + steps * len(operator.model.noises))
        draws = torch.rand(size, generator=generator, dtype=torch.float64)
        piece = piece.to(dtype=operator.dtype, device=operator.device)
        at = piece.x, piece.state, piece.tau, piece.p
        draws = draws.clamp(1e-6, 1 - 1e-6).to(piece.x)  # single precision has no 1 - 1e-9
        found.append((*samples(operator, *at, draws, int(slopes)), *_tangent(operator, *at)))
    value, *slope, tangent, bend = (torch.cat(v) for v in zip(*found, strict=True))
    return Labels(value, slope[0] if slopes else None, tangent, bend)


def _at(operator: Operator, x: Tensor, state, tau: Tensor, p) -> At:
    """With the one derivative that a slope needs."""
    states = tuple(Jet(y, pairs=()) for y in as_states(state))
    return operator.at((Jet(x, pairs=(), x=1), states, Jet(tau, pairs=())), p)


def _tangent(operator: Operator, x, state, tau, p) -> tuple[Tensor, Tensor]:
    """u_N and u_{Nx}: a change M of N changes u by u_N M and u_x by u_{Nx} M + u_N M_x."""
    at = _at(operator, x, state, tau, p)
    with torch.no_grad():
        n = operator.correction(at)
    value, slope = n.value.requires_grad_(), n.part("x").requires_grad_()
    with torch.enable_grad():
        u = ANSATZ[operator.config.ansatz](Jet(value, pairs=(), x=slope), at)
        bend, tangent = torch.autograd.grad(
            u.part("x").sum(), (value, slope), allow_unused=True, materialize_grads=True
        )
    return tangent, bend


class _Fit:
    """The weighted least squares of the module's text, as a `training.Loss`."""

    def __init__(self, second: Second, known: Tensor, labels: Labels, lam: float, batch: int,
                 seed: int):  # fmt: skip
        self.second, self.known, self.labels = second, known, labels
        self.lam, self.batch, self.seed = lam, batch, seed
        self.names = ("x",)[: len(known) - 1]
        parts = [labels.value] + ([labels.slope] if lam else [])
        self.weights = [precision(known[0], part) for part in parts]

    def begin(self, phase: Phase, number: int, step: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + step)
        size = (min(self.batch, len(self.labels.value)),)
        rows = torch.randint(len(self.labels.value), size, generator=generator)
        self.rows = rows.to(self.known.device)

    def parts(self):
        rows, of = self.rows, self.labels
        m = self.second.jet(Stack(self.known[:, rows], self.names, ())).data
        tangent = of.tangent[rows]
        left = of.value[rows] + tangent * m[0]
        terms = {"values": (self.weights[0][rows] * left * left).mean()}
        if self.lam:
            left = of.slope[rows] + of.bend[rows] * m[0] + tangent * m[1]
            terms["slopes"] = self.lam * (self.weights[1][rows] * left * left).mean()
        yield terms


def precision(known: Tensor, label: Tensor) -> Tensor:
    """Inverse of the label's local mean square and a floor, (n,), such that E[W label^2] = 1.

    The local mean square is the exponential of a linear fit of ln label^2 to what is known (n, d),
    the floor the square of a share of the labels' RMS: below it a smaller error is of no use.

    >>> known = torch.linspace(-1, 1, 1000)[:, None]
    >>> w = operators.learned.precision(known, torch.exp(3 * known[:, 0]))
    >>> bool(w[0] > w[-1])  # where labels are large they count less
    True
    """
    z = torch.cat([known, torch.ones_like(known[:, :1])], 1)
    squared = label.square()
    mean = squared.mean()
    logs = (squared + 1e-4 * mean).log()  # a label of nothing has no logarithm
    gram, right = (z.T @ z / len(z)).double(), (z.T @ logs / len(z)).double()
    ridge = 1e-4 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    local = (z @ torch.linalg.solve(gram + ridge, right).to(z)).exp()
    local = local * (squared / local).mean()
    inverse = 1 / (local + _FLOOR**2 * mean)
    return inverse / (inverse * squared).mean()


def fit(
    operator: Operator, points: Points, labels: Labels, *, width: int = 64, hidden: int = 2,
    slopes: float = 0.0, steps: int = 3000, batch: int = 4096, rate: float = 1.5e-2,
    seed: int = 0, progress: bool = True,
) -> Learned:  # fmt: skip
    """The operator with one more network M in its ansatz, fitted to the labels.

    Trained in single precision by SOAP, on batches drawn with replacement; what M sees is kept in
    memory, 1.6 kB a sample for `sound`, twice that with slopes. The operator is not changed.

    >>> sound = weights.load("sound")
    >>> points = draw(sound, 256)
    >>> small = dict(width=4, hidden=1, steps=2, progress=False)
    >>> fit(sound, points, label(sound, points), **small).shapes
    [(4, 1)]

    Parameters
    ----------
    points, labels : (n,) options and what `label` returned for them
    slopes : lambda, the weight of the slope labels
    steps, batch, rate : of the training

    Returns
    -------
    Learned, frozen, in the operator's dtype and on its device.

    Raises
    ------
    ValueError
        Labels of another length, a weight below zero or without slope labels, no batch.
    """
    n = len(points.x)
    require(len(labels.value) == n, "labels", len(labels.value), f"one for each of {n} points")
    require(0 <= slopes < float("inf"), "slopes", slopes, "finite and non-negative")
    require(slopes == 0 or labels.slope is not None, "slopes", slopes, "zero without such labels")
    require(isinstance(batch, int) and batch >= 1, "batch", batch, "a whole number, at least 1")
    shapes = operator.shapes if isinstance(operator, Learned) else []
    phase = Phase("soap", steps, rate, warmup=min(50, steps // 5), epsilon=1e-15)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Learned(operator.config, [*shapes, (width, hidden)])
    found.load_state_dict(operator.state_dict(), strict=False)
    found = found.float().to(operator.device).requires_grad_(False)
    like: Any = dict(dtype=torch.float32, device=operator.device)
    labels = Labels(*(None if v is None else v.to(**like) for v in labels))  # type: ignore[arg-type]
    with torch.no_grad():
        pieces = (v.to(**like) for v in points.chunks(_ROWS))
        ats = (_at(found, v.x, v.state, v.tau, v.p) for v in pieces)
        channels = 2 if slopes else 1
        known = torch.cat([knows(found, at)[0].data[:channels] for at in ats], 1)
        second = found.seconds[-1]
        second.mean.copy_(known[0].mean(0))
        second.spread.copy_(known[0].std(0).nan_to_num(1.0).clamp_min(1e-6))
        ratio = labels.value.square().mean() / labels.tangent.square().mean()
        second.scale.copy_(ratio.sqrt())
        last = second.net.layers[-1]
        last.weight.mul_(0.1)  # begin next to no correction at all
        last.bias.zero_()
        # from here on standardised once: the same network on ready inputs
        known[0] -= second.mean
        known /= second.spread
    ready = copy.deepcopy(second)
    ready.mean.zero_()
    ready.spread.fill_(1.0)
    ready.requires_grad_(True)
    train(ready, _Fit(ready, known, labels, slopes, batch, seed), [phase], progress=progress)
    second.net.load_state_dict(ready.net.state_dict())
    return found.to(operator.dtype).requires_grad_(False).eval()


def learn(
    operator: Operator, count: int = 2**20, *, slopes: float = 0.0, seed: int = 0, **options
) -> Learned:
    """`draw`, `label` in single precision, and `fit`: an operator with less of its error.

    Can be repeated on what it returns, with another seed.

    >>> small = dict(width=4, hidden=1, steps=2, progress=False)
    >>> learn(weights.load("sound"), 256, **small).shapes
    [(4, 1)]

    Parameters
    ----------
    count : number of options, with one path each
    slopes : lambda; with zero no slope is computed
    options : of `fit`

    Raises
    ------
    ValueError
        As `draw`, `label` and `fit`.
    """
    points = draw(operator, count, seed=seed)
    single = copy.deepcopy(operator).float()
    labels = label(single, points, slopes=slopes > 0, seed=seed + 1)
    return fit(operator, points, labels, slopes=slopes, seed=seed, **options)

r"""Sobolev training: fit a network's values and its derivatives at once.

.. math:: L = \frac{E[(y - f)^2]}{\operatorname{Var} y}
    + \lambda\,\frac1d \sum_j \frac{E[(\partial_j y - \partial_j f)^2]}{E[(\partial_j y)^2]}
    + \mu\,\frac1k \sum_l \frac{E\,|H_y v_l - H_f v_l|^2}{E\,|H_y v_l|^2}

Sobolev Pruning, definition 1, with every column weighted by 1/RMS as Huge and Savine do: the terms
are free of units, so lambda means the same for any scaling of inputs and prices. The last term is
second-order information along a few directions v, by Hessian-vector products (Kichler 2023).
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._validate import require, tensors
from ..training import Phase, train


class Labels(NamedTuple):
    """Training data; all but `x` and `value` may be absent.

    >>> labels = Labels(torch.zeros(3, 2), torch.zeros(3))
    >>> labels.gradient is None
    True
    """

    x: Tensor  # (n, d)
    value: Tensor  # (n,)
    gradient: Tensor | None = None  # (n, d)
    directions: Tensor | None = None  # (k, d)
    curvature: Tensor | None = None  # (n, k, d): Hessian times direction


Sampler = Callable[[int, torch.Generator], Labels]
"""Draws so many labels, with a generator on the network's device; any tuple in the order of
`Labels` will do."""


def differentiate(
    function, x: Tensor, *, order: int = 1, directions: Tensor | None = None, graph: bool = False
) -> Labels:
    """Values and derivatives of a function at `x` (n, d), by reverse-mode AD.

    >>> differentiate(lambda x: x[:, 0] ** 2 * x[:, 1], torch.tensor([[3.0, 2.0]])).gradient
    tensor([[12.,  9.]])

    Parameters
    ----------
    function : maps (n, d) to (n,) or (n, 1), row by row: a closed form or a network
    order : 0, value; 1, and the gradient; 2, and the Hessian times each of the `directions` (k, d)
    graph : keep the graph, to differentiate the result by the function's parameters

    Raises
    ------
    TypeError
        `x` is not of float32 or float64, or not of a network's own dtype.
    ValueError
        Another order, or the second without directions; more than one output.
    """
    tensors(x=x)
    _same_dtype(function, x=x)
    require(order in (0, 1, 2), "order", order, "0, 1 or 2")
    require(order < 2 or directions is not None, "directions", None, "given for order 2")
    return _differentiate(function, x, order, directions, graph)


def _same_dtype(function, **given: Tensor | None) -> None:
    """Raise `TypeError` unless what is given has the dtype of the network's weights."""
    weight = next(iter(function.parameters()), None) if isinstance(function, nn.Module) else None
    for name, value in given.items():
        if weight is not None and value is not None and value.dtype != weight.dtype:
            raise TypeError(
                f"{name} must be of the network's dtype, {weight.dtype}, got {value.dtype}"
            )


def _column(y: Tensor, x: Tensor) -> Tensor:
    """A network's output, (n,) or (n, 1), as (n,)."""
    shapes = f"of one output a row, ({len(x)},) or ({len(x)}, 1)"
    require(y.numel() == len(x), "function's value", tuple(y.shape), shapes)
    return y.reshape(len(x))


def _differentiate(function, x: Tensor, order: int, directions, graph: bool) -> Labels:
    if order == 0:
        return Labels(x, _column(function(x), x))

    def by_x(y):
        if not y.requires_grad:  # the gradient of a linear function is a constant
            return torch.zeros_like(x)
        return torch.autograd.grad(
            y.sum(), x, create_graph=graph or order > 1, materialize_grads=True
        )[0]

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = _column(function(x), x)
        labels = Labels(x, value, by_x(value))
        if order > 1:
            products = torch.stack([by_x(labels.gradient @ v) for v in directions], dim=1)
            labels = labels._replace(directions=directions, curvature=products)
    if graph:
        return labels
    return Labels._make(t if t is None else t.detach() for t in labels)


def distil(
    function, x: Tensor, *, order: int = 1, directions: Tensor | None = None, chunk: int = 4096
) -> Labels:
    """Labels for many points: `differentiate`, `chunk` rows at a time, to spare memory.

    A large network's labels cost its student nothing during training, and need no paths.

    >>> labels = distil(lambda x: x.square().sum(1), torch.ones(5, 3), chunk=2)
    >>> labels.value.shape, labels.gradient[0]
    (torch.Size([5]), tensor([2., 2., 2.]))

    Raises
    ------
    ValueError
        `chunk` is not a positive integer.

    Returns
    -------
    Labels of all n points: value (n,), gradient (n, d), curvature (n, k, d).
    """
    require(isinstance(chunk, int) and chunk > 0, "chunk", chunk, "a positive integer")
    parts = [
        differentiate(function, rows, order=order, directions=directions) for rows in x.split(chunk)
    ]
    join = (None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))
    return Labels._make(join)._replace(directions=directions if order > 1 else None)


def principal_directions(gradients: Tensor, share: float = 0.95) -> Tensor:
    """The fewest principal components of the gradients (n, d) that hold a share of the variance.

    Orthonormal rows (k, d), most important first. They span where the function bends: for a basket
    option that is one direction, whatever d.

    >>> principal_directions(torch.tensor([[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]])).abs()
    tensor([[0.6000, 0.8000]])

    Raises
    ------
    ValueError
        `share` outside (0, 1].
    """
    require(0 < share <= 1, "share", share, "in (0, 1]")
    centred = gradients - gradients.mean(dim=0)
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    held = singular.square().cumsum(0) / singular.square().sum()
    return rows[: int((held < share - 1e-9).sum()) + 1]


def random_directions(
    count: int, dim: int, *, generator: torch.Generator | None = None, dtype=None, device=None
) -> Tensor:
    """Orthonormal random rows (count, dim): what the principal ones are compared with.

    Drawn where the generator is, and returned there or on `device`.

    >>> v = random_directions(2, 5, dtype=torch.float64)
    >>> torch.allclose(v @ v.T, torch.eye(2, dtype=torch.float64))
    True

    Raises
    ------
    ValueError
        `count` outside 1 to `dim`.
    """
    require(0 < count <= dim, "count", count, f"in 1 to dim = {dim}")
    where = None if generator is None else generator.device
    draw = torch.randn(dim, count, generator=generator, dtype=dtype, device=where)
    return torch.linalg.qr(draw).Q.T.to(device)


class Standardised(nn.Module):
    """A network on inputs and outputs of mean zero and deviation one, seen in raw units.

    Derivatives pass through by AD, so losses and Greeks need not know of it. The inner `network`
    stays the plain one that pruning analyses. An input, or a value, that is constant in the data
    is moved to zero and not scaled.

    >>> x, value = torch.tensor([[0.0], [2.0]]), torch.tensor([10.0, 30.0])
    >>> Standardised(nn.Identity(), x, value)(x)  # a straight line through the data
    tensor([10., 30.])

    Parameters
    ----------
    x, value : (n, d) and (n,), the data that give means and deviations
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    def __init__(self, network: nn.Module, x: Tensor, value: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("x_mean", x.mean(dim=0))
        self.register_buffer("x_std", _or_one(x.std(dim=0), x))
        self.register_buffer("y_mean", value.mean())
        self.register_buffer("y_std", _or_one(value.std(), value))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)"""
        inner = self.network((x - self.x_mean) / self.x_std)
        return self.y_mean + self.y_std * _column(inner, x)

    def around(self, network: nn.Module) -> "Standardised":
        """The same standardisation around another network, which is not copied."""
        return _around(self, network)


def _or_one(spread: Tensor, data: Tensor) -> Tensor:
    """A spread to divide by: one where the data (n, ...) are constant, whatever rounding left."""
    return spread.where(data.amax(dim=0) > data.amin(dim=0), 1.0)


def _around(frame: nn.Module, network: nn.Module) -> Standardised:
    """The standardisation in the buffers of `frame`, which are not shared, around a network."""
    other = Standardised.__new__(Standardised)
    nn.Module.__init__(other)
    other.network = network
    for name, buffer in frame.named_buffers(recurse=False):
        other.register_buffer(name, buffer)
    return other


class Together(nn.Module):
    """Networks of one shape side by side: one `fit` trains all, at little more than one's price.

    The first n of m n rows go to the first member, and so on: members see samples of their own.
    `loss` averages over all rows, so that each member's gradient is its own over m; `fit` makes up
    for that, and trains each as if it were alone.

    >>> x, value = torch.tensor([[0.0], [2.0]]), torch.tensor([10.0, 30.0])
    >>> pair = Together([Standardised(networks.plain(1, 3, 1), x, value) for _ in range(2)])
    >>> len(pair), pair(torch.zeros(6, 1)).shape
    (2, torch.Size([6]))

    Parameters
    ----------
    members : `Standardised` plain networks with one standardisation and one activation

    Raises
    ------
    ValueError
        No member, or members of different shapes or standardisations; inputs whose number is no
        multiple of theirs.
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    def __init__(self, members):
        super().__init__()
        shapes = {tuple(p.shape for p in m.parameters()) for m in members}
        require(len(shapes) == 1, "members", f"{len(shapes)} shapes", "networks of one shape")
        frames = [dict(m.named_buffers(recurse=False)) for m in members]
        same = all(torch.equal(f[k], v) for f in frames for k, v in frames[0].items())
        require(same, "members", f"{len(frames)} networks", "alike in their standardisation")
        for name, buffer in members[0].named_buffers(recurse=False):
            self.register_buffer(name, buffer.clone())
        # For its layers; in a tuple, so that its parameters are not ours.
        self._like = (copy.deepcopy(members[0].network),)
        parts = zip(*(m.network.parameters() for m in members), strict=True)
        self.stacks = nn.ParameterList(torch.stack([p.detach() for p in ps]) for ps in parts)

    def forward(self, x: Tensor) -> Tensor:
        """(m n, d) -> (m n,)"""
        m = len(self)
        require(len(x) % m == 0, "x", len(x), f"a multiple of the {m} members")
        act, h = self._like[0][1], ((x - self.x_mean) / self.x_std).view(m, -1, x.shape[1]).mT
        for k in range(0, len(self.stacks), 2):  # columns are samples: long rows run fastest
            bias = self.stacks[k + 1][..., None]
            h = torch.baddbmm(bias, self.stacks[k], act(h) if k else h.contiguous())
        return (self.y_mean + self.y_std * h).reshape(len(x))

    def __len__(self) -> int:
        return len(self.stacks[0])

    @torch.no_grad()
    def members(self) -> list[Standardised]:
        """The networks as they are now, copies of their own, frozen."""
        found = []
        for i in range(len(self)):
            network = copy.deepcopy(self._like[0]).to(self.stacks[0]).requires_grad_(False)
            for p, stack in zip(network.parameters(), self.stacks, strict=True):
                p.copy_(stack[i])
            found.append(_around(self, network))
        return found


class Scale(NamedTuple):
    """What the loss divides by: variance of the values, mean squares of the derivatives.

    >>> Scale.of(Labels(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))).value  # the variance
    tensor(1.)
    """

    value: Tensor
    gradient: Tensor | None
    curvature: Tensor | None

    @classmethod
    def of(cls, labels: Labels) -> "Scale":
        def mean_square(t, dims):
            # A column that is zero throughout (a dead input) keeps weight one.
            return None if t is None else (s := t.square().mean(dim=dims)).where(s > 0, 1.0)

        second = labels.curvature
        return cls(
            _or_one(labels.value.var(), labels.value),
            mean_square(labels.gradient, 0),
            None if second is None else mean_square(second, 0).sum(-1, keepdim=True),
        )


def loss(network, labels: Labels, scale: Scale, lam: float = 1.0, mu: float = 0.0) -> Tensor:
    """The equation above, a scalar; terms of weight zero are not computed.

    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> labels = differentiate(lambda x: 2 * x[:, 0], x)
    >>> loss(lambda x: x[:, 0], labels, Scale.of(labels)).detach()  # (14/3)/4 and 1/4
    tensor(1.4167)

    Parameters
    ----------
    network : maps (n, d) to (n,) or (n, 1)
    scale : what to divide by, `Scale.of` some labels
    lam, mu : weights of the first and second derivatives, >= 0

    Raises
    ------
    ValueError
        Labels that lack what the loss needs, or whose shapes do not fit each other.
    """
    _check(labels, lam, mu)
    return _loss(network, labels, scale, lam, mu)


def _loss(network, labels: Labels, scale: Scale, lam: float, mu: float) -> Tensor:
    order = 2 if mu > 0 else 1 if lam > 0 else 0
    ours = _differentiate(network, labels.x, order, labels.directions, True)
    total = (labels.value - ours.value).square().mean() / scale.value
    if lam > 0:
        total = total + lam * _errors(labels.gradient, ours.gradient, scale.gradient).mean()
    if mu > 0:
        errors = _errors(labels.curvature, ours.curvature, scale.curvature)
        total = total + mu * errors.sum(-1).mean()
    return total


def _errors(label: Tensor | None, ours: Tensor | None, scale: Tensor | None) -> Tensor:
    """Mean squares over the rows, by column, over their scale."""
    assert label is not None and ours is not None and scale is not None  # checked at the door
    return (label - ours).square().mean(dim=0) / scale


def _check(labels: Labels, lam: float, mu: float) -> None:
    """Raise ValueError unless all is there, in the shapes of `Labels`: (n, 1) makes n x n."""
    require(lam == 0 or labels.gradient is not None, "lam", lam, "zero without gradient labels")
    require(mu == 0 or labels.curvature is not None, "mu", mu, "zero without curvature labels")
    require(mu == 0 or labels.directions is not None, "mu", mu, "zero without directions")
    shapes = {k: tuple(t.shape) for k, t in labels._asdict().items() if t is not None}
    found = ", ".join(f"{k} {v}" for k, v in shapes.items())
    n, d = shapes["x"] if labels.x.ndim == 2 else (None, None)
    k = None if labels.directions is None else len(labels.directions)
    fit = {"x": (n, d), "value": (n,), "gradient": (n, d)}
    fit |= {"directions": (k, d), "curvature": (n, k, d)}
    right = all(shape == fit[name] for name, shape in shapes.items())
    allowed = "x (n, d), value (n,), gradient (n, d), directions (k, d), curvature (n, k, d)"
    require(right, "shapes of the labels", found, allowed)


def resample(labels: Labels) -> Sampler:
    """A sampler that draws from a fixed data set, with replacement.

    >>> sampler = resample(Labels(torch.ones(3, 2), torch.ones(3)))
    >>> sampler(8, torch.Generator()).x.shape
    torch.Size([8, 2])
    """

    def sampler(n: int, generator: torch.Generator) -> Labels:
        rows = torch.randint(len(labels.x), (n,), generator=generator, device=generator.device)
        rows = rows.to(labels.x.device)
        picked = Labels._make(t if t is None else t[rows] for t in labels._replace(directions=None))
        return picked._replace(directions=labels.directions)

    return sampler


def fit(
    network: nn.Module,
    sampler: Sampler,
    *,
    steps: int = 1000,
    batch: int = 1024,
    lr: float = 0.02,
    lam: float = 1.0,
    mu: float = 0.0,
    decay: float = 0.0,
    seed: int = 0,
    pilot: int = 16384,
) -> Tensor:
    """Train `network` in place by Adam under a one-cycle schedule; the losses, shape (steps,).

    Small networks want a high peak `lr` (0.02 to 0.03 with a few nodes a layer), wide ones a low
    one (3e-3 for 6 x 128). The labels' scale is measured on `pilot` draws. The same seed gives the
    same weights, bit for bit, on one CPU thread. The members of a `Together` train each as it
    would alone.

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> line, labels = nn.Linear(1, 1), differentiate(lambda x: 3 * x[:, 0], x)
    >>> _ = fit(line, resample(labels), steps=200, batch=64, lr=0.2)
    >>> round(line.weight.item(), 2)
    3.0

    Parameters
    ----------
    sampler : called as ``sampler(n, generator)``; labels in the dtype and on the device of the
        network, with gradients if `lam` > 0 and curvatures if `mu` > 0. Its first draw is checked.
    lam, mu : weights of the first and second derivatives, zero to leave them out
    decay : L2 penalty in Adam's coupled form, `decay` times the weights added to their gradients

    Raises
    ------
    TypeError
        Labels in another dtype than the network's.
    ValueError
        A setting outside its meaning, a network that is frozen or has several outputs, or labels
        that lack what the loss needs or whose shapes do not fit.
    FloatingPointError
        The loss is not finite: which step, at which learning rate.
    """
    for name, number in (("steps", steps), ("batch", batch), ("pilot", pilot)):
        require(isinstance(number, int) and number > 0, name, number, "a positive integer")
    for name, weight in (("lam", lam), ("mu", mu), ("decay", decay)):
        require(math.isfinite(weight) and weight >= 0, name, weight, "finite and non-negative")
    require(math.isfinite(lr) and lr > 0, "lr", lr, "finite and positive")
    free = [p for p in network.parameters() if p.requires_grad]
    require(len(free) > 0, "network", "a frozen one", "one whose parameters require gradients")
    device = free[0].device
    generator = torch.Generator(device).manual_seed(seed)
    first = Labels(*sampler(pilot, generator))
    _check(first, lam, mu)
    tensors(**{name: label for name, label in first._asdict().items() if label is not None})
    _same_dtype(network, **first._asdict())
    fitting = _Fitting(network, sampler, Scale.of(first), batch, lam, mu, generator)
    fitting.losses = torch.empty(steps, device=device)
    phase = Phase("adam", steps, lr, schedule="one-cycle", decay=decay)
    train(network, fitting, [phase], progress=False)
    return fitting.losses.cpu()


class _Fitting:
    """`loss` on labels drawn anew each step, as a `training.Loss`; it keeps the losses."""

    losses: Tensor

    def __init__(self, network, sampler, scale, batch, lam, mu, generator):
        self.network, self.sampler, self.scale = network, sampler, scale
        self.batch, self.lam, self.mu, self.generator = batch, lam, mu, generator
        self.members = len(network) if isinstance(network, Together) else 1

    def begin(self, phase: Phase, number: int, step: int) -> None:
        self.now = step

    def parts(self):
        self.labels = Labels(*self.sampler(self.batch, self.generator))
        value = _loss(self.network, self.labels, self.scale, self.lam, self.mu)
        self.losses[self.now] = value.detach()
        # The sum of the members' losses: else a penalty would weigh m times against each.
        yield {"sobolev": value if self.members == 1 else self.members * value}

    def locate(self) -> str:
        bad = [
            k for k, t in self.labels._asdict().items() if t is not None and not t.isfinite().all()
        ]
        return f"of the labels, {bad} are not finite" if bad else "the network's, not the labels"


# Measuring


def along(function, x: Tensor, direction: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative along a direction (d,), each (n,).

    Without a direction all inputs move together: the basket's price, Delta and Gamma.

    >>> along(lambda x: x[:, 0] * x[:, 1], torch.tensor([[3.0, 2.0]]))  # 6, 3 + 2, 2
    (tensor([6.]), tensor([5.]), tensor([2.]))
    """
    direction = torch.ones_like(x[0]) if direction is None else direction.to(x)
    labels = differentiate(function, x, order=2, directions=direction[None])
    assert labels.gradient is not None and labels.curvature is not None
    return labels.value, labels.gradient @ direction, labels.curvature[:, 0] @ direction


class Score(NamedTuple):
    """How well a prediction meets the truth; the median beside R2, which hides failure.

    >>> Score(r2=0.99, median=0.1, worst=0.5).worst
    0.5
    """

    r2: float
    median: float  # median absolute error
    worst: float  # largest absolute error


def score(prediction: Tensor, truth: Tensor) -> Score:
    """R2, median and worst absolute error of a prediction, shapes alike.

    >>> score(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))  # 1 - 1/2
    Score(r2=0.5, median=0.0, worst=1.0)
    """
    error = (prediction - truth).double()
    spread = (truth.double() - truth.double().mean()).square().sum()
    size = error.abs()
    return Score(float(1 - error.square().sum() / spread), float(size.median()), float(size.max()))


class Scores(NamedTuple):
    """The scores of a price and its derivatives along the basket.

    >>> Scores(*[Score(r2=1.0, median=0.0, worst=0.0)] * 3).gamma.r2
    1.0
    """

    value: Score
    delta: Score
    gamma: Score


def scores(network: nn.Module, x: Tensor, truth: tuple[Tensor, ...]) -> Scores:
    """How well a network's value, Delta and Gamma meet the truth at `x` (n, d).

    >>> x = torch.tensor([[1.0], [2.0]])
    >>> scores(nn.Flatten(0), x, (x[:, 0], torch.ones(2), torch.zeros(2))).value
    Score(r2=1.0, median=0.0, worst=0.0)

    Parameters
    ----------
    network : maps (n, d) to (n,); a copy is evaluated in the dtype and on the device of `x`
    truth : value, Delta and Gamma (n,), say from `Basket.greeks`; what follows is not looked at
    """
    exact = copy.deepcopy(network).to(x)
    widest = max((max(p.shape, default=1) for p in exact.parameters()), default=1)
    parts = (along(exact, rows) for rows in x.split(max(1, 2**17 // widest)))  # what a cache holds
    ours = [torch.cat(part) for part in zip(*parts, strict=True)]
    return Scores(*(score(a, b) for a, b in zip(ours, truth[:3], strict=True)))

r"""Fitting a model to quoted volatilities: bounded least squares, and what the quotes determine.

Of the unknowns z, the states and all parameters but the rate, the residuals are

.. math:: \varepsilon_i(z) = \frac{u_i(z) - u_i^{\text{quoted}}}{\partial u_i/\partial\text{vol}},

differences of implied volatility to first order, divided by the quote's half spread where there is
one. `Surface` makes residuals and Jacobian from anything that prices and differentiates, an
operator or a formula; `minimise` is Levenberg and Marquardt's method on a box, for many problems at
once (Nocedal and Wright 2006, section 10.3; the damping after Nielsen 1999); `calibrate` is both,
from many starts, with what can be said of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._validate import floating, require, tensors
from .models import black_scholes, heston
from .models.domain import Domain
from .models.heston_surface import HestonSurface
from .models.model import Model, as_states

Residuals = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From unknowns (B, m) and the problems' numbers (B,): residuals (B, n), Jacobian (B, n, m)."""


class Quotes(NamedTuple):
    """What a market says of n options at one moment, or of many markets: shapes (n,) or (S, n).

    >>> quotes = Quotes(torch.tensor([-0.1, 0.0]), 0.5, 0.02, torch.tensor([0.22, 0.2]))
    >>> bid_ask(quotes, torch.tensor([0.21, 0.19]), torch.tensor([0.23, 0.22])).half_spread
    tensor([0.0100, 0.0150])
    """

    x: Any  # log-moneyness ln(S/K)
    tau: Any  # years
    r: Any  # continuously compounded rate to each maturity
    volatility: Any  # implied, 1/sqrt(year); the middle where there are bid and ask
    half_spread: Any = None  # in units of volatility; None: all count alike, by an unknown error


def bid_ask(quotes: Quotes, bid: Tensor, ask: Tensor) -> Quotes:
    """The quotes with the middle of bid and ask volatilities, weighted by half the spread.

    Raises
    ------
    ValueError
        An ask that is not above its bid.
    """
    require(ask > bid, "ask", ask, "above the bid")
    return quotes._replace(volatility=(bid + ask) / 2, half_spread=(ask - bid) / 2)


class Solution(NamedTuple):
    """Of `minimise`: one entry a problem.

    >>> fit = minimise(lambda z, rows: (z - 3, torch.ones(len(z), 1, 1)), torch.zeros(1, 1))
    >>> fit.z, fit.cost, fit.converged
    (tensor([[3.]]), tensor([0.]), tensor([True]))
    """

    z: Tensor  # (B, m)
    cost: Tensor  # (B,), half the sum of squares
    residuals: Tensor  # (B, n)
    jacobian: Tensor  # (B, n, m)
    calls: Tensor  # (B,), evaluations of residuals and Jacobian
    converged: Tensor  # (B,)


def minimise(
    function: Residuals, start: Tensor, low: Tensor | float = -torch.inf,
    high: Tensor | float = torch.inf, *, calls: int = 100, tolerance: float = 1e-10,
) -> Solution:  # fmt: skip
    r"""Least squares on a box for B problems at once.

    With :math:`J` the Jacobian, a step solves
    :math:`(J^\top J + \lambda\,\mathrm{diag}\,J^\top J)\,\delta = -J^\top\varepsilon` among the
    unknowns that no bound holds; one that would leave the box stops at its bound, and the others
    are solved for anew. :math:`\lambda` follows the ratio of achieved to predicted decrease.

    Parameters
    ----------
    function : residuals and Jacobian of the problems that are still at work, see `Residuals`
    start : (B, m), within the box
    low, high : of shape (m,) or (B, m); equal ends hold an unknown where it is
    calls : at most, a problem
    tolerance : a problem has converged when the predicted decrease is below this share of its
        cost plus tolerance squared

    Raises
    ------
    ValueError
        A start outside the box, or where the residuals are not finite.
    """
    require(start.ndim == 2, "start", start, "of shape (problems, unknowns)")
    low, high = (torch.as_tensor(v).to(start).expand_as(start) for v in (low, high))
    require((start >= low) & (start <= high), "start", start, "within the box")
    z, rows = start, torch.arange(len(start), device=start.device)
    r, jac = function(z, rows)
    require(torch.isfinite(r).all(-1), "residuals at the start", r, "finite")
    cost = 0.5 * r.square().sum(-1)
    damping, growth = torch.full_like(cost, 1e-3), torch.full_like(cost, 2.0)
    used, no = torch.ones_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    answer = Solution(*(v.clone() for v in (z, cost, r, jac, used, no)))

    def keep(which, converged: bool) -> None:
        found = (z, cost, r, jac, used, torch.full_like(no[: len(rows)], converged))
        for kept, v in zip(answer, found, strict=True):
            kept[rows[which]] = v[which]

    for _ in range(calls - 1):
        step, expected = _step(z, r, jac, low, high, damping)
        ready = (expected.abs() <= tolerance * (cost + tolerance)) | (damping > 1e12)
        if bool(ready.any()):
            keep(ready, True)
            z, r, jac, cost, damping, growth, used, rows, step, expected, low, high = (
                v[~ready]
                for v in (z, r, jac, cost, damping, growth, used, rows, step, expected, low, high)
            )
            if not len(rows):
                break
        trial = z + step
        r_new, jac_new = function(trial, rows)
        cost_new = 0.5 * r_new.square().sum(-1)
        gain = (cost - cost_new) / expected
        taken = (gain > 0) & (expected > 0)  # false for what is not finite
        factor = (1 - (2 * gain - 1) ** 3).clamp_min(1 / 3)
        damping = damping * torch.where(taken, factor, growth)
        growth = torch.where(taken, 2.0, 2 * growth)
        z, r = (torch.where(taken[:, None], *v) for v in ((trial, z), (r_new, r)))
        jac, cost = torch.where(taken[:, None, None], jac_new, jac), cost.where(~taken, cost_new)
        used = used + 1
    keep(torch.ones_like(rows, dtype=torch.bool), False)
    return answer


def _step(z, r, jac, low, high, damping) -> tuple[Tensor, Tensor]:
    """The step within the box, and the decrease of the cost that the linear model expects."""
    gradient = (jac.mT @ r[..., None]).squeeze(-1)
    held = (low == high) | ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0))
    step = torch.zeros_like(z)
    for _ in range(z.shape[-1]):
        left = r + (jac @ (step * held)[..., None]).squeeze(-1)
        free = jac.masked_fill(held[:, None], 0.0)
        square = free.mT @ free
        scale = square.diagonal(dim1=-2, dim2=-1)
        system = square + torch.diag_embed(damping[:, None] * scale + (scale == 0))
        found = torch.linalg.solve(system, -(free.mT @ left[..., None])).squeeze(-1)
        step = torch.where(held, step, found)
        within = torch.minimum(torch.maximum(step, low - z), high - z)
        leaves = within != step  # an unknown that would leave the box stops at its bound
        held, step = held | leaves, within
        if not bool(leaves.any()):
            break
    moved = (jac @ step[..., None]).squeeze(-1)
    return step, -(moved * r).sum(-1) - 0.5 * moved.square().sum(-1)


# -- from a pricer to residuals ------------------------------------------------------------------


class Surface:
    """A model's residuals on the quotes of S markets, and their Jacobian by reverse mode.

    The unknowns are the states and the parameters but the rate (`names`). Where the domain has a
    condition, sigma is replaced by the root of `Model.closeness`, so that a box is all there is.

    Parameters
    ----------
    price : function of x, state, tau and p, differentiable: `Operator.price` or `heston.call`
    quotes : of n options, or of S markets with n options each

    Raises
    ------
    ValueError
        Quotes that are not finite, without value, or whose shapes do not match.

    >>> p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.0)
    >>> x = torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    >>> w = black_scholes.implied_variance(heston.call(x, 0.04, 1.0, p), x)
    >>> surface = Surface(heston.call, heston.MODEL, Quotes(x, 1.0, 0.0, w.sqrt()))
    >>> z = surface.pack((torch.tensor([0.04]),), heston.MODEL.checked(p)[None])
    >>> bool(surface(z)[0].abs().max() < 1e-9)
    True
    """

    def __init__(
        self, price: Callable[..., Tensor], model: Model, quotes: Quotes,
        domain: Domain | None = None,
    ):  # fmt: skip
        self.price, self.model = price, model
        self.domain = model.domain if domain is None else domain
        self.names = (*model.states, *model.Parameters._fields[:-1])
        # a little inside: rounding must not break the condition
        self.largest = model.edges.get(self.domain.where, 1.0) * (1 - 1e-6)
        self.spread_known = quotes.half_spread is not None
        half = quotes.half_spread if self.spread_known else 1.0
        x, tau, r, vol, half = floating(**quotes._replace(half_spread=half)._asdict())
        require(x.ndim in (1, 2), "quotes", x, "of shape (n,) or (S, n)")
        require(torch.isfinite(x) & torch.isfinite(r), "x and r of the quotes", x, "finite")
        for name, value in (("tau", tau), ("volatility", vol), ("half_spread", half)):
            require((value > 0) & torch.isfinite(value), name, value, "positive and finite")
        x, tau, r, vol, half = (v.reshape(-1, x.shape[-1]) for v in (x, tau, r, vol, half))
        at = black_scholes.partials(x + r * tau, (vol * vol * tau).log())
        self.x, self.tau, self.r, self.volatility = x, tau, r, vol
        self.quoted = at.value * torch.exp(-r * tau)
        self.scale = 2 * at.y / vol * torch.exp(-r * tau) * half  # dF/dvol = F_y dy/dvol
        require(self.scale > 1e-12, "vega of the quotes", self.scale, "above 1e-12 of the strike")

    def box(self) -> tuple[Tensor, Tensor]:
        """The ends of the unknowns' ranges, (m,) each."""
        limits = dict(zip(self.names, self.domain.of(*self.names), strict=True))
        if self.domain.where:
            limits["sigma"] = (1e-3, self.largest**0.5)
        like: Any = dict(dtype=self.x.dtype, device=self.x.device)
        low, high = torch.tensor(list(limits.values()), **like).T
        return low, high

    def pack(self, state: tuple[Tensor, ...], p) -> Tensor:
        """Unknowns (B, m) from states and parameters (B,); `unpack` is the inverse."""
        if self.domain.where:
            p = p._replace(sigma=self.model.closeness(p).sqrt())
        return torch.stack([v.to(self.x).expand(p.shape) for v in (*state, *tuple(p)[:-1])], -1)

    def unpack(self, z: Tensor, r: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        """States and parameters of the shape of r from unknowns (..., m)."""
        count = len(self.model.states)
        p = self.model.Parameters(*z[..., count:].unbind(-1), r)
        if self.domain.where:
            p = self.model.at_closeness(p, p.sigma**2)
            low, high = self.domain["sigma"]
            p = p._replace(sigma=p.sigma.clamp(low * (1 - 1e-6), high))
        return z[..., :count].unbind(-1), p

    def __call__(self, z: Tensor, market: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Residuals (B, n) and Jacobian (B, n, m) at unknowns z (B, m) for markets (B,)."""
        rows = torch.as_tensor(market, device=z.device).expand(len(z))
        u, slope = self.priced(z.detach(), rows)
        scale = self.scale[rows]
        return (u - self.quoted[rows]) / scale, slope / scale[..., None]

    def priced(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prices (B, n) and derivatives in the unknowns (B, n, m), for markets `rows` (B,)."""
        x, tau, r = self.x[rows], self.tau[rows], self.r[rows]
        with torch.enable_grad():  # a quote depends on its own copy of the unknowns alone
            each = z[:, None].expand(*x.shape, z.shape[-1]).clone().requires_grad_()
            state, p = self.unpack(each, r)
            u = self.price(x, state[0] if len(state) == 1 else state, tau, p).to(z)
            (slope,) = torch.autograd.grad(u.sum(), each)
        return u.detach(), slope

    def natural(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """States and parameters but the rate (B, m), and their derivatives in z (B, m, m)."""
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            state, p = self.unpack(leaf, torch.zeros_like(z[:, 0]))
            values = torch.stack([*state, *tuple(p)[:-1]], -1)
            slope = torch.eye(z.shape[-1]).to(z).repeat(len(z), 1, 1)
            if self.domain.where:  # only sigma is not an unknown itself
                (slope[:, self.names.index("sigma")],) = torch.autograd.grad(p.sigma.sum(), leaf)
        return values.detach(), slope

    def volatilities(self, z: Tensor, market: Tensor | int = 0) -> Tensor:
        """The model's implied volatilities (B, n); NaN where its price has none."""
        rows = torch.as_tensor(market, device=z.device).expand(len(z))
        tau, vol = self.tau[rows], self.volatility[rows]
        k, growth = self.x[rows] + self.r[rows] * tau, torch.exp(self.r[rows] * tau)
        price = self.priced(z, rows)[0] * growth
        for _ in range(8):  # the quotes are near
            at = black_scholes.partials(k, (vol * vol * tau).log())
            step = (price - at.value) * vol / (2 * at.y)
            vol = torch.maximum(vol + step, 0.25 * vol)
            if bool((step.abs() < 1e-10).all()):
                return vol
        return (black_scholes.implied_variance(price, k) / tau).sqrt()


class FormulaSurface(Surface):
    """The same for Heston's formula with `HestonSurface`, where all markets quote one grid.

    >>> x = torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    >>> surface = FormulaSurface(Quotes(x, 1.0, 0.05, torch.full_like(x, 0.2)))
    >>> surface(torch.tensor([[0.04, 2.0, 0.04, 0.5, -0.7]], dtype=torch.float64))[1].shape
    torch.Size([1, 5, 5])

    Raises
    ------
    ValueError
        As `Surface`; markets with different strikes, maturities or rates.
    """

    def __init__(self, quotes: Quotes, domain: Domain | None = None, **options):
        super().__init__(heston.call, heston.MODEL, quotes, domain)
        for name, v in (("x", self.x), ("tau", self.tau), ("r", self.r)):
            require((v == v[0]).all(-1), f"{name} of the quotes", v, "the same in all markets")
        volatility = self.volatility.mean(0)
        self.formula = HestonSurface(self.x[0], self.tau[0], self.r[0], volatility, **options)

    def priced(self, z, rows):
        values, slope = self.natural(z)
        u, derivatives = self.formula(values)
        return u, derivatives @ slope


@dataclass(frozen=True)
class Fit:
    """What `calibrate` found in S markets of n quotes, with m unknowns.

    Attributes
    ----------
    names : of the unknowns
    values, errors : (S, m), in the unknowns' own units; standard errors from the Jacobian at the
        optimum and, without spreads, the residuals' variance; NaN for an unknown at an edge
    rmse, worst : (S,), of the implied volatilities, 1/sqrt(year)
    edge : (S, m), whether a bound of the domain holds the unknown (sigma: or its condition)
    singular : (S, m), singular values of the Jacobian in units of the box's widths, times
        1/sqrt(n): how much volatility one box width of each combination moves, root mean square
    converged, calls : (S,), of the best start, and evaluations over all starts
    state, p : the model's arguments, with r = 0 for want of a single rate
    """

    names: tuple[str, ...]
    values: Tensor
    errors: Tensor
    rmse: Tensor
    worst: Tensor
    edge: Tensor
    singular: Tensor
    converged: Tensor
    calls: Tensor
    z: Tensor
    state: tuple[Tensor, ...]
    p: Any

    def report(self, market: int = 0) -> str:
        """A few lines about one market, for a person."""
        lines = []
        for name, value, error, held in zip(
            self.names, *(v[market].tolist() for v in (self.values, self.errors, self.edge)),
            strict=True,
        ):  # fmt: skip
            about = "at the edge of the domain" if held else f"+- {error:.2g}"
            lines.append(f"{name:>6} {value:9.5f} {about}")
        off, most = (1e4 * v[market].item() for v in (self.rmse, self.worst))
        lines.append(f"volatilities: RMSE {off:.1f} bp, worst {most:.1f} bp")
        if not bool(self.converged[market]):
            lines.append("not converged: allow more calls")
        if bool(self.edge[market].any()):
            lines.append("the optimum may lie outside: a wider domain could fit better")
        return "\n".join(lines)


def calibrate(
    surface: Surface, start: tuple | None = None, *, starts: int = 8, seed: int = 0, **options
) -> Fit:
    """Fit every market of a surface, each from all starts at once, and keep the best.

    Parameters
    ----------
    start : (state, p), numbers or one an S; by default `starts` Sobol points of the box
    options : passed on to `minimise`

    Raises
    ------
    ValueError
        A start outside the domain.
    """
    low, high = surface.box()
    markets = len(surface.x)
    if start is None:
        require(isinstance(starts, int) and starts > 0, "starts", starts, "a positive integer")
        engine = torch.quasirandom.SobolEngine(len(low), scramble=True, seed=seed)
        u = 0.05 + 0.9 * engine.draw(starts, dtype=torch.float64).to(low)
        first = (low + (high - low) * u).repeat(markets, 1)
    else:
        state, p = start
        names = (*surface.model.states, *surface.model.Parameters._fields)
        values = dict(zip(names, (*as_states(state), *p), strict=True))
        given = [v.to(low).reshape(-1).expand(markets) for v in tensors(**values)]
        count = len(surface.model.states)
        first = surface.pack(tuple(given[:count]), surface.model.Parameters(*given[count:]))
        held = first.clamp(low, high)  # a fit that ended on an edge may round to just outside
        first = torch.where((first - held).abs() <= 1e-9 * (high - low), held, first)
    count = len(first) // markets
    number = torch.arange(markets, device=low.device).repeat_interleave(count)
    found = minimise(lambda z, rows: surface(z, number[rows]), first, low, high, **options)
    best = found.cost.nan_to_num(torch.inf).view(markets, count).argmin(1)
    best = best + count * torch.arange(markets, device=low.device)
    calls = found.calls.view(markets, count).sum(1)
    return _judged(surface, Solution(*(v[best] for v in found)), calls)


def _judged(surface: Surface, found: Solution, calls: Tensor) -> Fit:
    low, high = surface.box()
    z, (markets, n, m) = found.z, found.jacobian.shape
    near = 1e-6 * (high - low)
    gradient = (found.jacobian.mT @ found.residuals[..., None]).squeeze(-1)
    edge = ((z <= low + near) & (gradient > 0)) | ((z >= high - near) & (gradient < 0))
    scaled = found.jacobian * (high - low)
    free = scaled.masked_fill(edge[:, None], 0.0)
    covariance = torch.linalg.pinv(free.mT @ free, hermitian=True)
    covariance = covariance * (high - low)[:, None] * (high - low)
    if not surface.spread_known:
        degrees = (n - m + edge.sum(-1)).clamp_min(1)
        covariance = covariance * (found.residuals.square().sum(-1) / degrees)[:, None, None]
    values, slope = surface.natural(z)
    errors = (slope @ covariance @ slope.mT).diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    off = surface.volatilities(z, torch.arange(markets, device=z.device)) - surface.volatility
    state, p = surface.unpack(z, torch.zeros_like(z[:, 0]))
    return Fit(
        names=surface.names, values=values, errors=errors.masked_fill(edge, torch.nan),
        rmse=off.square().mean(-1).sqrt(), worst=off.abs().amax(-1), edge=edge,
        singular=torch.linalg.svdvals(scaled) / n**0.5, converged=found.converged, calls=calls,
        z=z, state=state, p=p,
    )  # fmt: skip


def profile(
    surface: Surface, fit: Fit, name: str, values: Tensor, *, market: int = 0, **options
) -> Tensor:
    """The cost with one unknown held at each of `values` (V,) and the others fitted again: (V,).

    Half the sum of squared residuals; where it hardly rises the quotes do not determine the
    unknown. Of sigma in a domain with a condition, values of the root of `Model.closeness`.

    Raises
    ------
    ValueError
        An unknown name, a value outside the box.
    """
    require(name in surface.names, "name", name, f"one of {surface.names}")
    i, (low, high) = surface.names.index(name), surface.box()
    values = torch.as_tensor(values).to(low)
    require((values >= low[i]) & (values <= high[i]), name, values, "within the domain")
    start = fit.z[market].repeat(len(values), 1)
    ends = [end.repeat(len(values), 1) for end in (low, high)]
    for v in (start, *ends):
        v[:, i] = values
    return minimise(lambda z, rows: surface(z, market), start, *ends, **options).cost

"""How good an operator is: prices, Greeks and implied volatilities against the truth.

The statistics that DeepSVM does not print, on points that no training run has seen: they are
drawn afresh from a seed given at run time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._validate import require
from ..models import black_scholes, claims, heston, paths
from ..models.domain import Domain
from ..models.model import Model, as_states
from .collocation import parameters_near_edge
from .problem import PricingProblem

TAU_LOW = 0.005
"""Shortest maturity evaluated: at tau = 0 every ansatz is exact or not differentiable."""

SIMULATION = {"paths": 4096, "count": 64}
"""Paths and time steps of the truth where a model has no formula."""


@dataclass(frozen=True)
class EvaluationSet:
    """Points of a model's domain, each with its own parameters, and the true values there.

    `state` is a tensor, or a tuple where the model has several states; `error` the standard error
    of the true price, zero where there is a formula.

    >>> data = draw(0, 100)
    >>> [name for name in data.regions()]
    ['all', 'at the money', 'short maturity', 'near Feller', 'small variance']
    """

    model: Model
    domain: Domain
    x: Tensor
    state: Tensor | tuple[Tensor, ...]
    tau: Tensor
    p: Any  # the model's parameters
    price: Tensor
    delta: Tensor
    gamma: Tensor
    error: Tensor

    @property
    def nu(self) -> Tensor:
        """The state of a model that has one."""
        (nu,) = as_states(self.state)
        return nu

    def regions(self) -> dict[str, Tensor]:
        """Boolean masks: which points belong to which region of the domain."""
        found = {
            "all": torch.ones_like(self.x, dtype=torch.bool),
            "at the money": self.x.abs() <= 0.05,
            "short maturity": self.tau <= 0.05,
        }
        if self.domain.where:
            edge = self.model.edges.get(self.domain.where, 1.0)
            close = self.model.closeness(self.p) >= 0.9 * edge
            found[f"near {self.domain.where.title()}"] = close
        if len(self.model.states) == 1:
            found["small variance"] = self.nu <= _small(self.domain[self.model.states[0]])
        return found


def _small(ends: tuple[float, float]) -> float:
    low, high = ends
    return low + (high - low) * 2 / 39  # of Table I's variances those up to 0.03


def draw(
    seed: int, n: int = 20_000, model: Model = heston.MODEL, domain: Domain | None = None, *,
    device: torch.device | str = "cpu",
) -> EvaluationSet:  # fmt: skip
    """`n` points: 60 % uniform over the domain and tau from 0.005, a tenth in each region more.

    Every region is thus populated; the statistics of "all" use the first 60 %. For Heston the
    domain is Table I. A model without a formula is simulated (`paths.conditional_call`). The
    points are the same on every `device`, where the truth is computed.

    >>> data = draw(0, 100)
    >>> len(data.x), bool((data.gamma > -1e-9).all())
    (100, True)

    Raises
    ------
    ValueError
        `n` below 100.
    """
    require(isinstance(n, int) and n >= 100, "n", n, "an integer of at least 100")
    domain = model.domain if domain is None else domain
    generator = torch.Generator().manual_seed(seed)
    states = len(model.states)
    u = torch.rand(2 + states, n, generator=generator, dtype=torch.float64)

    def between(u, low, high):
        return low + (high - low) * u

    x = domain.scale("x", u[0])
    state = tuple(domain.scale(s, v) for s, v in zip(model.states, u[1:], strict=False))
    tau = between(u[-1], TAU_LOW, domain["tau"][1])
    p = model.sample(n, domain, generator=generator)
    tenth = n // 10
    atm, short, edge, small = (slice(n - (i + 1) * tenth, n - i * tenth) for i in range(4))
    x[atm] = between(u[0, atm], -0.05, 0.05)
    tau[short] = between(u[-1, short], TAU_LOW, 0.05)
    if states == 1:
        ends = domain[model.states[0]]
        state[0][small] = between(u[1, small], ends[0], _small(ends))
    near = parameters_near_edge(p[edge], 1.0, model, domain, generator=generator)
    for mine, new in zip(p, near, strict=True):
        mine[edge] = new
    x, tau, *there = (v.to(device) for v in (x, tau, *state))
    p = p.map(lambda v: v.to(device))
    given = there[0] if states == 1 else tuple(there)
    return EvaluationSet(model, domain, x, given, tau, p, *_truth(model, x, given, tau, p, seed))


def _truth(model: Model, x, state, tau, p, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Price, Delta, Gamma and the price's standard error."""
    if model is heston.MODEL:
        return *heston.price_delta_gamma(x, state, tau, p), torch.zeros_like(x + tau)
    if model.closed_form:
        exact = model.greeks(x, as_states(state), tau, p)
        return exact.price, exact.delta, exact.gamma, torch.zeros_like(exact.price)
    generator = torch.Generator(x.device).manual_seed(seed + 2)
    found = paths.conditional_call(model, x, state, tau, p, generator=generator, **SIMULATION)
    return found.price, found.delta, found.gamma, found.price_error


@dataclass(frozen=True)
class Curves:
    """Prices along x for fixed variance, maturity and parameters: shapes (curves, points).

    >>> x = torch.linspace(-0.5, 0.5, 3)
    >>> d, g = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, 2.0, 1.0]])
    >>> Curves(x, d, g * torch.tensor([1.0, 1.0, -0.5]), d, g).statistics()["worst negative Gamma"]
    -0.25
    """

    x: Tensor
    delta: Tensor
    gamma: Tensor
    true_delta: Tensor
    true_gamma: Tensor

    def statistics(self) -> dict[str, float]:
        """Of the shape of Delta and Gamma.

        "worst negative Gamma" is the lowest Gamma at |x| <= 0.5 over the peak of its curve (zero
        if none is negative); "negative Gammas" the share of negative ones at |x| <= 0.5 there
        where the true Gamma exceeds a millionth of its peak; "variation of Delta" the total
        variation over the true one, less one.
        """
        peak = self.true_gamma.amax(-1, keepdim=True)
        inner = self.x.abs() <= 0.5
        relative = (self.gamma / peak)[:, inner]
        visible = (self.true_gamma / peak)[:, inner] > 1e-6
        variation = self.delta.diff(dim=-1).abs().sum(-1)
        true_variation = self.true_delta.diff(dim=-1).abs().sum(-1)
        return {
            "worst negative Gamma": relative.min().clamp_max(0).item(),
            "negative Gammas": (relative[visible] < 0).double().mean().item(),
            "variation of Delta": (variation / true_variation - 1).mean().item(),
        }


def curves(
    operator, seed: int, n: int = 200, points: int = 240, model: Model = heston.MODEL,
    domain: Domain | None = None,
) -> Curves:  # fmt: skip
    """`n` curves over the middles of `points` (even: none on the strike) intervals of x.

    States and maturity are uniform over the domain, for Heston Table I (tau from 0.005), parameters
    under its condition.

    >>> found = curves(heston, 0, n=2, points=40)  # the truth itself as the operator
    >>> found.gamma.shape, found.statistics()["negative Gammas"]
    (torch.Size([2, 40]), 0.0)
    """
    domain = model.domain if domain is None else domain
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.linspace(*domain["x"], points + 1, dtype=torch.float64)
    x = 0.5 * (x[1:] + x[:-1])
    u = torch.rand(1 + len(model.states), n, 1, generator=generator, dtype=torch.float64)
    state = [domain.scale(s, v) for s, v in zip(model.states, u, strict=False)]
    tau = TAU_LOW + (domain["tau"][1] - TAU_LOW) * u[-1]
    p = model.sample(n, domain, generator=generator)[:, None]
    device = getattr(operator, "device", "cpu")
    x, tau, *state = (v.to(device) for v in (x, tau, *state))
    p = p.map(lambda v: v.to(device))
    given = state[0] if len(state) == 1 else tuple(state)
    if model.closed_form:
        _, true_delta, true_gamma, _ = _truth(model, x, given, tau, p, seed)
    else:
        rows = (tuple(v[:, 0] for v in state), tau[:, 0], p[:, 0])
        _, true_delta, true_gamma, _ = _truth(model, x.expand(n, points), *rows, seed)
    x_, *state, tau = (v.expand(n, points).reshape(-1) for v in (x, *state, tau))
    p = p.map(lambda v: v.expand(n, points).reshape(-1))
    given = state[0] if len(state) == 1 else tuple(state)
    found = operator.greeks(x_, given, tau, p)
    shaped = (v.to(x).view(n, points) for v in (found.delta, found.gamma, true_delta, true_gamma))
    return Curves(x, *shaped)


def errors(operator, data: EvaluationSet) -> dict[str, dict[str, float]]:
    """Statistics by region: RMSE and worst of price, Delta, Gamma, and of implied volatility.

    Prices are in units of strike, implied volatilities in basis points, over the points within
    three standard deviations of the money; "outside bounds" is the share of those whose price
    has no implied volatility.

    >>> table = errors(heston, draw(0, 100))  # the truth itself as the operator
    >>> table["all"]["points"], table["all"]["price worst"] < 1e-12
    (60, True)
    """
    found = operator.greeks(data.x, data.state, data.tau, data.p)
    price, delta, gamma = (v.to(data.price) for v in found[:3])
    volatility, near = _volatility_errors(price, data)
    table = {}
    for name, region in data.regions().items():
        if name == "all":
            region = _first(data)
        row: dict[str, float] = {"points": int(region.sum())}
        for greek, ours in (("price", price), ("delta", delta), ("gamma", gamma)):
            error = (ours - getattr(data, greek))[region]
            row[f"{greek} rmse"] = error.square().mean().sqrt().item()
            row[f"{greek} worst"] = error.abs().max().item()
        bp = volatility[region & near]
        exists = ~torch.isnan(bp)
        row["vol rmse bp"] = bp[exists].square().mean().sqrt().item()
        row["vol worst bp"] = bp[exists].abs().max().item() if exists.any() else float("nan")
        row["outside bounds"] = (~exists).double().mean().item()
        if not data.model.closed_form:
            row["of the truth"] = data.error[region].square().mean().sqrt().item()
        table[name] = row
    return table


def _first(data: EvaluationSet) -> Tensor:
    return torch.arange(len(data.x), device=data.x.device) < 6 * (len(data.x) // 10)


@torch.no_grad()
def fresh_loss(operator, points: int = 2**13, seed: int = 2026) -> dict[str, float]:
    """The terms of eq. 11 on points that training never saw, each with parameters of its own.

    The operator's own loss, terms and weights, on `points` in the domain, as many at the money and
    a quarter as many on the edges; "fresh loss" is the sum. A loss on fitted points flatters.

    >>> found = fresh_loss(weights.load("sound"), points=512)
    >>> list(found), found["fresh loss"] == sum(list(found.values())[:-1])
    (['physics', 'atm', 'boundary', 'fresh loss'], True)
    """
    sizes = dict(points=points, atm=points, boundary=points // 4, boundary_second=0, chunk=4096)
    problem = PricingProblem(operator, replace(operator.config, seed=seed, **sizes))
    terms = {"physics": 0.0, "atm": 0.0, "boundary": 0.0}
    for part in problem.parts():
        for name, value in part.items():
            terms[name] += float(value)
    return terms | {"fresh loss": sum(terms.values())}


def sensitivities(operator, data: EvaluationSet, n: int = 1000) -> dict[str, float]:
    """RMSE of d price/d parameter, by parameter, each times the width of the parameter's range.

    On the first `n` points, by reverse-mode AD of the operator's price and of the formula; the
    latter on the CPU, where its complex integrals differentiate in double precision at no loss.

    >>> found = sensitivities(weights.load("sound"), draw(0, 100), n=10)
    >>> len(found), max(found.values()) < 1e-2
    (5, True)

    Raises
    ------
    ValueError
        The model has no formula to differentiate.
    """
    model, part = data.model, slice(0, n)
    require(model.closed_form, "model", model.name, "one with a formula")
    x, tau, *states = (v[part].cpu() for v in (data.x, data.tau, *as_states(data.state)))
    state = states[0] if len(states) == 1 else tuple(states)

    def slopes(price):
        p = data.p[part].map(lambda v: v.cpu().clone().requires_grad_())
        with torch.enable_grad():
            return torch.autograd.grad(price(x, state, tau, p).sum(), tuple(p))

    ours = slopes(operator.price)
    true = slopes(lambda x, state, tau, p: model.greeks(x, as_states(state), tau, p).price)
    table = {}
    for name, a, b in zip(data.p._fields, ours, true, strict=True):
        low, high = data.domain[name]
        table[f"d price/d {name} rmse"] = (high - low) * (a - b).square().mean().sqrt().item()
    return table


def _volatility_errors(price: Tensor, data: EvaluationSet) -> tuple[Tensor, Tensor]:
    k = data.x + data.p.r * data.tau
    growth = torch.exp(data.p.r * data.tau)
    true = black_scholes.implied_variance(data.price * growth, k)
    found = black_scholes.implied_variance(price * growth, k)
    near = k.abs() <= 3 * true.sqrt()  # false where the truth itself is unresolved
    return 1e4 * ((found / data.tau).sqrt() - (true / data.tau).sqrt()), near


def evaluate(operator, seed: int, n: int | None = None) -> dict[str, dict[str, float]]:
    """`errors` by region on `n` fresh points of the model's own domain, and what has no region.

    The row "curves" holds `Curves.statistics`, the row "parameters" `sensitivities`. By default
    20,000 points and 200 curves; 1,000 and ten where the truth has to be simulated. For another
    claim than a call only the row "loss", `fresh_loss`: its truth is not known here.
    """
    if getattr(operator, "claim", claims.CALL) is not claims.CALL:
        return {"loss": fresh_loss(operator)}
    model = getattr(operator, "model", heston.MODEL)
    exact = model.closed_form
    device = getattr(operator, "device", "cpu")
    data = draw(seed, n or (20_000 if exact else 1_000), model, device=device)
    table = errors(operator, data)
    shape = curves(operator, seed, 200 if exact else 10, 240 if exact else 120, model)
    table["curves"] = shape.statistics()
    if exact:
        table["parameters"] = sensitivities(operator, data)
    return table


def format_table(table: dict[str, dict[str, float]]) -> str:
    """The whole table as text, one line a region.

    >>> print(format_table({"all": {"points": 4, "price rmse": 1.5e-4}}))
                 points     price rmse
    all               4        0.00015
    """
    regions = {k: v for k, v in table.items() if "points" in v}
    columns = list(next(iter(regions.values()), ()))
    width = max(map(len, regions), default=0) + 2
    lines = ["".ljust(width) + " ".join(f"{c:>14}" for c in columns)] if regions else []
    for name, row in regions.items():
        cells = (f"{row[c]:>14d}" if c == "points" else f"{row[c]:>14.3g}" for c in columns)
        lines.append(name.ljust(width) + " ".join(cells))
    for row in (v for v in table.values() if "points" not in v):
        lines += [f"{name}: {value:.3g}" for name, value in row.items()]
    return "\n".join(lines)

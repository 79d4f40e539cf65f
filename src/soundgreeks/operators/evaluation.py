"""How good an operator is: prices, Greeks and implied volatilities against the truth.

The statistics that DeepSVM does not print, on points that no training run has seen: they are
drawn afresh from a seed given at run time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import require
from ..models import black_scholes, heston
from ..models.heston import TABLE_I, Parameters
from .collocation import parameters_near_feller

TAU_LOW = 0.005
"""Shortest maturity evaluated: at tau = 0 every ansatz is exact or not differentiable."""


@dataclass(frozen=True)
class EvaluationSet:
    """Points of Table I under Feller, each with its own parameters, and the true values there."""

    x: Tensor
    nu: Tensor
    tau: Tensor
    p: Parameters
    price: Tensor
    delta: Tensor
    gamma: Tensor

    def regions(self) -> dict[str, Tensor]:
        """Boolean masks: which points belong to which region of the table."""
        feller = self.p.sigma**2 / (2 * self.p.kappa * self.p.theta)
        return {
            "all": torch.ones_like(self.x, dtype=torch.bool),
            "at the money": self.x.abs() <= 0.05,
            "short maturity": self.tau <= 0.05,
            "near Feller": feller >= 0.9,
            "small variance": self.nu <= 0.03,
        }


def draw(seed: int, n: int = 20_000) -> EvaluationSet:
    """`n` points: 60 % uniform over Table I and tau in [0.005, 1], a tenth in each region more.

    Every region of the table is thus populated; the statistics of "all" use the first 60 %.

    Raises
    ------
    ValueError
        `n` below 100.
    """
    require(isinstance(n, int) and n >= 100, "n", n, "an integer of at least 100")
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64)

    def between(u, low, high):
        return low + (high - low) * u

    x = between(u[0], *TABLE_I["x"])
    nu = between(u[1], *TABLE_I["nu"])
    tau = between(u[2], TAU_LOW, TABLE_I["tau"][1])
    p = heston.sample_parameters(n, generator=generator)
    tenth = n // 10
    atm, short, edge, small = (slice(n - (i + 1) * tenth, n - i * tenth) for i in range(4))
    x[atm] = between(u[0, atm], -0.05, 0.05)
    tau[short] = between(u[2, short], TAU_LOW, 0.05)
    nu[small] = between(u[1, small], TABLE_I["nu"][0], 0.03)
    near = parameters_near_feller(p[edge], 1.0, generator=generator)
    p.sigma[edge] = near.sigma
    return EvaluationSet(x, nu, tau, p, *heston.price_delta_gamma(x, nu, tau, p))


@dataclass(frozen=True)
class Curves:
    """Prices along x for fixed variance, maturity and parameters: shapes (curves, points)."""

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


def curves(operator, seed: int, n: int = 200, points: int = 240) -> Curves:
    """`n` curves over the middles of `points` (even: none on the strike) intervals of [-2, 2].

    Variance and maturity are uniform over Table I (tau from 0.005), parameters under Feller.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.linspace(*TABLE_I["x"], points + 1, dtype=torch.float64)
    x = 0.5 * (x[1:] + x[:-1])
    u = torch.rand(2, n, 1, generator=generator, dtype=torch.float64)
    nu = TABLE_I["nu"][0] + (TABLE_I["nu"][1] - TABLE_I["nu"][0]) * u[0]
    tau = TAU_LOW + (TABLE_I["tau"][1] - TAU_LOW) * u[1]
    p = heston.sample_parameters(n, generator=generator)[:, None]
    _, true_delta, true_gamma = heston.price_delta_gamma(x, nu, tau, p)
    full = [v.expand(n, points) for v in (x, nu, tau)]
    p = Parameters(*(v.expand(n, points).reshape(-1) for v in p))
    found = operator.greeks(*(v.reshape(-1) for v in full), p)
    delta, gamma = (v.double().view(n, points) for v in (found.delta, found.gamma))
    return Curves(x, delta, gamma, true_delta, true_gamma)


def errors(operator, data: EvaluationSet) -> dict[str, dict[str, float]]:
    """Statistics by region: RMSE and worst of price, Delta, Gamma, and of implied volatility.

    Prices are in units of strike, implied volatilities in basis points, over the points within
    three standard deviations of the money; "outside bounds" is the share of those whose price
    has no implied volatility.
    """
    found = operator.greeks(data.x, data.nu, data.tau, data.p)
    volatility, near = _volatility_errors(found.price.double(), data)
    table = {}
    for name, region in data.regions().items():
        if name == "all":
            region = torch.arange(len(data.x)) < 6 * (len(data.x) // 10)
        row = {"points": int(region.sum())}
        for greek in ("price", "delta", "gamma"):
            error = (getattr(found, greek).double() - getattr(data, greek))[region]
            row[f"{greek} rmse"] = error.square().mean().sqrt().item()
            row[f"{greek} worst"] = error.abs().max().item()
        bp = volatility[region & near]
        exists = ~torch.isnan(bp)
        row["vol rmse bp"] = bp[exists].square().mean().sqrt().item()
        row["vol worst bp"] = bp[exists].abs().max().item() if exists.any() else float("nan")
        row["outside bounds"] = (~exists).double().mean().item()
        table[name] = row
    return table


def _volatility_errors(price: Tensor, data: EvaluationSet) -> tuple[Tensor, Tensor]:
    k = data.x + data.p.r * data.tau
    growth = torch.exp(data.p.r * data.tau)
    true = black_scholes.implied_variance(data.price * growth, k)
    found = black_scholes.implied_variance(price * growth, k)
    near = k.abs() <= 3 * true.sqrt()  # false where the truth itself is unresolved
    return 1e4 * ((found / data.tau).sqrt() - (true / data.tau).sqrt()), near


def evaluate(operator, seed: int, n: int = 20_000) -> dict[str, dict[str, float]]:
    """`errors` by region on fresh points, and the row "curves" of `Curves.statistics`."""
    table = errors(operator, draw(seed, n))
    table["curves"] = curves(operator, seed).statistics()
    return table


def format_table(table: dict[str, dict[str, float]]) -> str:
    """The whole table as text, one line a region."""
    regions = {k: v for k, v in table.items() if k != "curves"}
    columns = list(next(iter(regions.values())))
    width = max(map(len, regions)) + 2
    lines = ["".ljust(width) + " ".join(f"{c:>14}" for c in columns)]
    for name, row in regions.items():
        cells = (f"{row[c]:>14d}" if c == "points" else f"{row[c]:>14.3g}" for c in columns)
        lines.append(name.ljust(width) + " ".join(cells))
    lines += [f"{name}: {value:.3g}" for name, value in table.get("curves", {}).items()]
    return "\n".join(lines)

r"""Where the equation is imposed: Sobol points, maps of x, boundary and ATM sets, refinement.

A set of points is `Points`: x, nu, tau of shape (P,) and parameters of shape (P,), each point
with its own, or (M, 1), every parameter vector against every point.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .._validate import require
from ..models.heston import TABLE_I, Parameters, sample_parameters


def tanh_map(u: Tensor, low: float, high: float, alpha: float = 2.0) -> Tensor:
    """Eq. 14: uniform u in [0, 1] to x_mid + x_half tanh(alpha (2u - 1)).

    Its density is smallest at x_mid and it ends at x_mid -/+ x_half tanh(alpha).
    """
    return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(alpha * (2 * u - 1))


def sinh_map(u: Tensor, low: float, high: float, alpha: float = 4.0) -> Tensor:
    """Uniform u in [0, 1] to x_mid + x_half sinh(alpha (2u - 1))/sinh(alpha), all of [low, high].

    Its density is largest at x_mid: sinh(alpha)/alpha times the uniform one.
    """
    z = torch.sinh(alpha * (2 * u - 1)) / math.sinh(alpha)
    return 0.5 * (low + high) + 0.5 * (high - low) * z


def uniform_map(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


MAPS = {"tanh": tanh_map, "sinh": sinh_map, "uniform": uniform_map}


@dataclass(frozen=True)
class Points:
    """A collocation set; see the module's text for the shapes."""

    x: Tensor
    nu: Tensor
    tau: Tensor
    p: Parameters

    @property
    def grid(self) -> bool:
        """Whether every parameter vector meets every point."""
        return self.p.kappa.ndim == 2

    @property
    def count(self) -> int:
        """Number of residuals."""
        return self.x.numel() * (self.p.kappa.numel() if self.grid else 1)

    def to(self, **where) -> "Points":
        p = Parameters(*(v.to(**where) for v in self.p))
        return Points(self.x.to(**where), self.nu.to(**where), self.tau.to(**where), p)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a checkpoint; `from_tensors` is the inverse."""
        own = {name: getattr(self, name) for name in ("x", "nu", "tau")}
        return own | {f.name: getattr(self.p, f.name) for f in fields(Parameters)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Points":
        p = Parameters(*(tensors[f.name] for f in fields(Parameters)))
        return cls(tensors["x"], tensors["nu"], tensors["tau"], p)

    def select(self, index) -> "Points":
        """The points `index`, with their parameters if they have their own."""
        p = self.p if self.grid else self.p[index]
        return Points(self.x[index], self.nu[index], self.tau[index], p)

    def select_parameters(self, index) -> "Points":
        """The parameter vectors `index` of a grid."""
        return Points(self.x, self.nu, self.tau, self.p[index])

    def shard(self, rank: int, world: int) -> "Points":
        """Every `world`-th point (or parameter vector of a grid), beginning with `rank`.

        Raises
        ------
        ValueError
            The set does not divide evenly: the mean of the shards' losses would not be the loss.
        """
        n = len(self.p.kappa) if self.grid else len(self.x)
        require(n % world == 0, "world size", world, f"a divisor of {n}")
        part = slice(rank, None, world)
        return self.select_parameters(part) if self.grid else self.select(part)

    def chunks(self, size: int) -> list["Points"]:
        """Pieces of at most about `size` residuals (at least one point each)."""
        per = max(1, size // len(self.p.kappa)) if self.grid else size
        return [self.select(slice(i, i + per)) for i in range(0, len(self.x), per)]


def _replace(old: Points, index: Tensor, new: Points) -> Points:
    tensors = {k: v.clone() for k, v in old.tensors().items()}
    names = ("x", "nu", "tau") if old.grid else tensors
    for name in names:
        tensors[name][index] = new.tensors()[name]
    return Points.from_tensors(tensors)


def _sobol(n: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    return engine.draw(n, dtype=torch.float64)


def parameters_near_feller(
    p: Parameters, share: float, *, generator: torch.Generator | None = None
) -> Parameters:
    """Move a share of the vectors next to the Feller boundary: sigma^2 in (.8, 1) 2 kappa theta.

    There the correction to Black-Scholes, and the error, are largest. Table I still holds.
    """
    low, high = TABLE_I["sigma"]
    u = torch.rand(2, *p.shape, generator=generator, dtype=torch.float64).to(p.kappa)
    edge = (2 * p.kappa * p.theta).sqrt() * (0.8 + 0.2 * u[0]).sqrt()
    moved = (u[1] < share) & (edge > low) & (edge < high)
    return Parameters(p.kappa, p.theta, torch.where(moved, edge, p.sigma), p.rho, p.r)


def draw(
    size: int | tuple[int, int],
    *,
    x_map: str = "tanh",
    x: tuple[float, float] = TABLE_I["x"],
    nu: tuple[float, float] = TABLE_I["nu"],
    tau: tuple[float, float] = TABLE_I["tau"],
    feller_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Points:
    """Scrambled Sobol points, uniform in (nu, tau) and mapped in x, with parameters of Table I.

    Parameters
    ----------
    size : P points with parameters of their own, or (M, P) for a grid
    x_map : "tanh" (eq. 14), "sinh" or "uniform"
    x, nu, tau : edges of the domain
    feller_share : share of parameter vectors moved next to the Feller boundary

    Returns
    -------
    Points, float64.

    Raises
    ------
    ValueError
        A size below one or an unknown map.
    """
    m, n = size if isinstance(size, tuple) else (None, size)
    require(n >= 1 and (m is None or m >= 1), "size", size, "at least 1")
    require(x_map in MAPS, "x_map", x_map, f"one of {tuple(MAPS)}")
    u = _sobol(n, 3, generator)
    p = sample_parameters(n if m is None else m, generator=generator)
    if feller_share:
        p = parameters_near_feller(p, feller_share, generator=generator)
    return Points(
        MAPS[x_map](u[:, 0], *x),
        uniform_map(u[:, 1], *nu),
        uniform_map(u[:, 2], *tau),
        p if m is None else p[:, None],
    )


def draw_at_the_money(size, *, half_width: float = 0.05, **domain) -> Points:
    """The ATM set of III.C: uniform x in [-half_width, half_width], the rest as `draw`."""
    return draw(size, **domain | dict(x_map="uniform", x=(-half_width, half_width)))


def draw_similar(
    n: int,
    *,
    x: tuple[float, float],
    nu: tuple[float, float],
    tau: tuple[float, float],
    spread: float = 1.6,
    uniform_share: float = 0.15,
    feller_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Points:
    """Points where the price bends, whatever its scale: x normal with deviation spread sqrt(w).

    tau and nu are drawn as squares of uniforms, dense towards small values, x clamped to its
    range; a share `uniform_share` of the points has uniform x. Each has its own parameters.
    """
    u = _sobol(n, 4, generator)
    p = parameters_near_feller(
        sample_parameters(n, generator=generator), feller_share, generator=generator
    )
    variance = nu[0] + (nu[1] - nu[0]) * u[:, 1] ** 2
    time = tau[0] + (tau[1] - tau[0]) * u[:, 2] ** 2
    w = p.theta * time - (variance - p.theta) * torch.expm1(-p.kappa * time) / p.kappa
    z = torch.special.ndtri(u[:, 0].clamp(1e-6, 1 - 1e-6))
    near = (spread * w.sqrt() * z).clamp(*x)
    return Points(
        torch.where(u[:, 3] < uniform_share, uniform_map(u[:, 0], *x), near), variance, time, p
    )


def refine(
    active: Points, candidates: Points, scores: Tensor, count: int, *,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    """RAR with replacement (III.C): the `count` worst candidates replace random active points.

    Parameters
    ----------
    active : the set to renew; of a grid, only the points change (`refine_parameters`)
    candidates : at least `count` points of the same kind
    scores : (number of candidates,) residual loss of each

    Raises
    ------
    ValueError
        `count` exceeds the candidates or the active set, or a score is not finite.
    """
    require(torch.isfinite(scores), "scores", scores, "finite")
    require(
        1 <= count <= min(len(scores), len(active.x)), "count", count,
        f"in [1, {min(len(scores), len(active.x))}]",
    )  # fmt: skip
    worst = torch.topk(scores, count).indices
    victims = torch.randperm(len(active.x), generator=generator)[:count].to(active.x.device)
    return _replace(active, victims, candidates.select(worst))


def refine_parameters(
    active: Points, candidates: Parameters, scores: Tensor, count: int, *,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    """The same for the parameter vectors, candidates (M', 1), of a grid."""
    require(torch.isfinite(scores), "scores", scores, "finite")
    m = len(active.p.kappa)
    require(1 <= count <= min(len(scores), m), "count", count, f"in [1, {min(len(scores), m)}]")
    worst = torch.topk(scores, count).indices
    victims = torch.randperm(m, generator=generator)[:count].to(active.x.device)
    p = [v.clone() for v in active.p]
    for mine, new in zip(p, candidates[worst], strict=True):
        mine[victims] = new
    return Points(active.x, active.nu, active.tau, Parameters(*p))


def resample_proportionally(
    candidates: Points, scores: Tensor, count: int, *, power: float = 1.0, offset: float = 1.0,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    r"""RAD (Wu et al., 2023): `count` candidates with probability \|R\|^k / E\|R\|^k + c.

    Parameters
    ----------
    scores : (number of candidates,) absolute residuals |R|
    power, offset : k and c
    """
    require(torch.isfinite(scores) & (scores >= 0), "scores", scores, "finite and non-negative")
    require(1 <= count <= len(scores), "count", count, f"in [1, {len(scores)}]")
    weight = scores.double() ** power
    weight = weight / weight.mean().clamp_min(torch.finfo(torch.float64).tiny) + offset
    index = torch.multinomial(weight.cpu(), count, replacement=False, generator=generator)
    return candidates.select(index.to(scores.device))

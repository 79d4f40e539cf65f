r"""Where the equation is imposed: Sobol points, maps of x, boundary and ATM sets, refinement.

A set of points is `Points`: x, states and tau of shape (P,) and parameters of shape (P,), each
point with its own, or (M, 1), every parameter vector against every point.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validate import require
from ..models import heston
from ..models.domain import Domain
from ..models.model import Model, as_states


def tanh_map(u: Tensor, low: float, high: float, alpha: float = 2.0) -> Tensor:
    """Eq. 14: uniform u in [0, 1] to x_mid + x_half tanh(alpha (2u - 1)).

    Its density is smallest at x_mid and it ends at x_mid -/+ x_half tanh(alpha).

    >>> tanh_map(torch.tensor([0.0, 0.5, 1.0]), -1.0, 1.0)  # tanh 2 at the ends
    tensor([-0.9640,  0.0000,  0.9640])

    Parameters
    ----------
    u : any shape, which the result has
    low, high : ends of x; alpha : steepness, > 0
    """
    return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(alpha * (2 * u - 1))


def sinh_map(u: Tensor, low: float, high: float, alpha: float = 4.0) -> Tensor:
    """Uniform u in [0, 1] to x_mid + x_half sinh(alpha (2u - 1))/sinh(alpha), all of [low, high].

    Its density is largest at x_mid: sinh(alpha)/alpha times the uniform one.

    >>> sinh_map(torch.tensor([0.0, 0.5, 1.0]), -1.0, 1.0)
    tensor([-1.0000,  0.0000,  1.0000])

    Parameters
    ----------
    u : any shape, which the result has
    low, high : ends of x; alpha : steepness, > 0
    """
    z = torch.sinh(alpha * (2 * u - 1)) / math.sinh(alpha)
    return 0.5 * (low + high) + 0.5 * (high - low) * z


def uniform_map(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform u in [0, 1] to [low, high].

    >>> uniform_map(torch.tensor([0.0, 0.25, 1.0]), -1.0, 1.0)
    tensor([-1.0000, -0.5000,  1.0000])
    """
    return low + (high - low) * u


MAPS = {"tanh": tanh_map, "sinh": sinh_map, "uniform": uniform_map}


@dataclass(frozen=True)
class Points:
    """A collocation set; see the module's text for the shapes.

    `state` is a tuple of tensors, one a state variable; a single tensor stands for a tuple of one.

    >>> points = draw((3, 8))  # 3 parameter vectors against 8 points
    >>> points.grid, points.count, len(points.chunks(12))
    (True, 24, 2)
    """

    x: Tensor
    state: tuple[Tensor, ...]
    tau: Tensor
    p: Any  # the model's parameters

    def __post_init__(self):
        object.__setattr__(self, "state", as_states(self.state))

    @property
    def nu(self) -> Tensor:
        """The state of a model that has one."""
        (nu,) = self.state
        return nu

    @property
    def grid(self) -> bool:
        """Whether every parameter vector meets every point."""
        return self.p.r.ndim == 2

    @property
    def count(self) -> int:
        """Number of residuals."""
        return self.x.numel() * (self.p.r.numel() if self.grid else 1)

    def _map(self, function, parameters=None) -> "Points":
        """The function applied to every tensor; to the parameters another, or none."""
        x, *state, tau = (function(v) for v in (self.x, *self.state, self.tau))
        return Points(x, tuple(state), tau, self.p if parameters is None else parameters(self.p))

    def to(self, **where) -> "Points":
        """The same on another device or in another dtype."""
        return self._map(lambda v: v.to(**where), lambda p: p.map(lambda v: v.to(**where)))

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a checkpoint; `with_tensors` is the inverse."""
        states = {f"state.{i}": v for i, v in enumerate(self.state)}
        return {"x": self.x, **states, "tau": self.tau, **self.p._asdict()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Points":
        """Other values in the place of `tensors`."""
        state = tuple(tensors[f"state.{i}"] for i in range(len(self.state)))
        p = type(self.p)(*(tensors[name] for name in self.p._fields))
        return Points(tensors["x"], state, tensors["tau"], p)

    def select(self, index) -> "Points":
        """The points `index`, with their parameters if they have their own."""
        return self._map(lambda v: v[index], lambda p: p if self.grid else p[index])

    def select_parameters(self, index) -> "Points":
        """The parameter vectors `index` of a grid."""
        return self._map(lambda v: v, lambda p: p[index])

    def shard(self, rank: int, world: int) -> "Points":
        """Every `world`-th point (or parameter vector of a grid), beginning with `rank`.

        Raises
        ------
        ValueError
            The set does not divide evenly: the mean of the shards' losses would not be the loss.
        """
        n = len(self.p.r) if self.grid else len(self.x)
        require(n % world == 0, "world size", world, f"a divisor of {n}")
        part = slice(rank, None, world)
        return self.select_parameters(part) if self.grid else self.select(part)

    def chunks(self, size: int) -> list["Points"]:
        """Pieces of at most about `size` residuals (at least one point each)."""
        per = max(1, size // len(self.p.r)) if self.grid else size
        return [self.select(slice(i, i + per)) for i in range(0, len(self.x), per)]


def _replace(old: Points, index: Tensor, new: Points) -> Points:
    tensors = {k: v.clone() for k, v in old.tensors().items()}
    for name, value in new.tensors().items():
        if not (old.grid and name in old.p._fields):
            tensors[name][index] = value
    return old.with_tensors(tensors)


def _seed(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def _sobol(n: int, dimensions: int, generator: torch.Generator | None) -> Tensor:
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=_seed(generator))
    return engine.draw(n, dtype=torch.float64)


def parameters_near_edge(
    p, share: float, model: Model = heston.MODEL, domain: Domain | None = None, *,
    generator: torch.Generator | None = None,
):  # fmt: skip
    """Move a share of the vectors next to the edge of the domain's condition (`Model.near_edge`).

    There the correction to Black-Scholes, and the error, are largest. For Heston it is the Feller
    boundary: sigma^2 in (.8, 1) 2 kappa theta.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> 0.8 <= float(heston.MODEL.closeness(parameters_near_edge(p, 1.0))) <= 1  # was .5625
    True
    """
    device = generator.device if generator is not None else None
    u = torch.rand(2, *p.shape, generator=generator, dtype=torch.float64, device=device).to(p.r)
    near = model.near_edge(p, u[0], model.domain if domain is None else domain)
    moved = u[1] < share
    return type(p)(*(torch.where(moved, a, b) for a, b in zip(near, p, strict=True)))


def draw(
    size: int | tuple[int, int],
    *,
    model: Model = heston.MODEL,
    domain: Domain | None = None,
    x_map: str = "tanh",
    edge_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Points:
    """Scrambled Sobol points, uniform in states and tau and mapped in x, with parameters.

    >>> points = draw((3, 8))
    >>> points.x.shape, points.p.r.shape
    (torch.Size([8]), torch.Size([3, 1]))

    Parameters
    ----------
    size : P points with parameters of their own, or (M, P) for a grid
    domain : the model's own by default, for Heston Table I
    x_map : "tanh" (eq. 14), "sinh" or "uniform"
    edge_share : share of parameter vectors moved next to the edge of the domain's condition

    Returns
    -------
    Points, float64, on the CPU.

    Raises
    ------
    ValueError
        A size below one or an unknown map.
    """
    domain = model.domain if domain is None else domain
    m, n = size if isinstance(size, tuple) else (None, size)
    require(n >= 1 and (m is None or m >= 1), "size", size, "at least 1")
    require(x_map in MAPS, "x_map", x_map, f"one of {tuple(MAPS)}")
    u = _sobol(n, 2 + len(model.states), generator).unbind(1)
    p = model.sample(n if m is None else m, domain, generator=generator)
    if edge_share:
        p = parameters_near_edge(p, edge_share, model, domain, generator=generator)
    return Points(
        MAPS[x_map](u[0], *domain["x"]),
        tuple(domain.scale(s, v) for s, v in zip(model.states, u[1:], strict=False)),
        domain.scale("tau", u[-1]),
        p if m is None else p[:, None],
    )


def draw_at_the_money(size, *, half_width: float = 0.05, **options) -> Points:
    """The ATM set of III.C: uniform x in [-half_width, half_width], the rest as `draw`.

    >>> points = draw_at_the_money(64)
    >>> bool((points.x.abs() <= 0.05).all())
    True

    Raises
    ------
    ValueError
        A size below one.
    """
    model = options.get("model", heston.MODEL)
    domain = (options.get("domain") or model.domain) | {"x": (-half_width, half_width)}
    return draw(size, **options | dict(x_map="uniform", domain=domain))


def draw_similar(
    n: int,
    *,
    model: Model = heston.MODEL,
    domain: Domain | None = None,
    spread: float = 1.6,
    tau_power: float = 2.0,
    uniform_share: float = 0.15,
    edge_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Points:
    """Points where the price bends, whatever its scale: x normal with deviation spread sqrt(w).

    States are the model's (`Model.visited`), tau a power `tau_power` of uniforms, dense towards its
    lower end, x clamped to its range; a share `uniform_share` of the points has uniform x. Each
    has its own parameters.

    >>> points = draw_similar(64, spread=0.0, uniform_share=0.0)  # all at the money
    >>> float(points.x.abs().max()), points.count
    (0.0, 64)
    """
    domain = model.domain if domain is None else domain
    u = _sobol(n, 3 + len(model.states), generator).unbind(1)
    p = model.sample(n, domain, generator=generator)
    p = parameters_near_edge(p, edge_share, model, domain, generator=generator)
    state = model.visited(p, domain, u[1:-2], generator)
    tau = domain.scale("tau", u[-2] ** tau_power)
    w = model.expected_variance(p, tau, *state)
    z = torch.special.ndtri(u[0].clamp(1e-6, 1 - 1e-6))
    near = (spread * w.clamp_min(0).sqrt() * z).clamp(*domain["x"])
    x = torch.where(u[-1] < uniform_share, domain.scale("x", u[0]), near)
    return Points(x, state, tau, p)


def _permutation(n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.randperm(n, generator=generator, device=device)


def refine(
    active: Points, candidates: Points, scores: Tensor, count: int, *,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    """RAR with replacement (III.C): the `count` worst candidates replace random active points.

    >>> active, candidates = draw(4), draw(2)
    >>> renewed = refine(active, candidates, torch.tensor([0.0, 1.0]), 1)
    >>> int((renewed.x == candidates.x[1]).sum()), int(torch.isin(renewed.x, active.x).sum())
    (1, 3)

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
    victims = _permutation(len(active.x), generator)[:count].to(active.x.device)
    return _replace(active, victims, candidates.select(worst))


def refine_parameters(
    active: Points, candidates: Any, scores: Tensor, count: int, *,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    """The same for the parameter vectors, candidates (M', 1), of a grid.

    >>> active, candidates = draw((4, 8)), draw((2, 8)).p
    >>> renewed = refine_parameters(active, candidates, torch.tensor([0.0, 1.0]), 1)
    >>> int((renewed.p.r == candidates.r[1]).sum()), int(torch.isin(renewed.p.r, active.p.r).sum())
    (1, 3)

    Raises
    ------
    ValueError
        `count` exceeds the candidates or the active vectors, or a score is not finite.
    """
    require(torch.isfinite(scores), "scores", scores, "finite")
    m = len(active.p.r)
    require(1 <= count <= min(len(scores), m), "count", count, f"in [1, {min(len(scores), m)}]")
    worst = torch.topk(scores, count).indices
    victims = _permutation(m, generator)[:count].to(active.x.device)
    p = active.p.map(Tensor.clone)
    for mine, new in zip(p, candidates[worst], strict=True):
        mine[victims] = new
    return Points(active.x, active.state, active.tau, p)


def resample_proportionally(
    candidates: Points, scores: Tensor, count: int, *, power: float = 1.0, offset: float = 1.0,
    generator: torch.Generator | None = None,
) -> Points:  # fmt: skip
    r"""RAD (Wu et al., 2023): `count` candidates with probability \|R\|^k / E\|R\|^k + c.

    >>> candidates = draw(3)
    >>> one = resample_proportionally(candidates, torch.tensor([0.0, 2.0, 0.0]), 1, offset=0.0)
    >>> bool(one.x == candidates.x[1])  # the only one of positive probability
    True

    Parameters
    ----------
    scores : (number of candidates,) absolute residuals |R|
    power, offset : k and c

    Returns
    -------
    Points, `count` of them, each at most once.

    Raises
    ------
    ValueError
        `count` exceeds the candidates, or a score is negative or not finite.
    """
    require(torch.isfinite(scores) & (scores >= 0), "scores", scores, "finite and non-negative")
    require(1 <= count <= len(scores), "count", count, f"in [1, {len(scores)}]")
    weight = scores.double() ** power
    weight = weight / weight.mean().clamp_min(torch.finfo(torch.float64).tiny) + offset
    if generator is not None:
        weight = weight.to(generator.device)
    index = torch.multinomial(weight, count, replacement=False, generator=generator)
    return candidates.select(index.to(candidates.x.device))

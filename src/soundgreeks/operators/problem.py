"""Section III.C: the loss of a pricing operator on its collocation sets, and how they are renewed.

Brings together operator, points and residual, as a `training.Loss`; and what section V proposes,
derivatives of the residual (`Config.sobolev`), with section IV's penalty (`Config.gamma_penalty`).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._validate import require
from ..arithmetic.jets import Jet
from ..models.claims import Claim
from ..models.model import delta_gamma
from ..training import Phase, train
from . import collocation, equation
from .collocation import Points
from .networks import DeepONet
from .operator import Config, Operator

_EDGES = ("boundary", "more boundary")
_XX = (("x", "x"),)  # the only second derivative in Gamma


class PricingProblem:
    """L = L_phys + lambda_b L_bound + lambda_a L_atm (eq. 11) for one operator.

    Where `config.sobolev` asks for it, L_phys and L_atm hold lambda_1 E[(s R_x)^2] +
    lambda_2 E[(s^2 R_xx)^2] as well, s = sqrt(w); see `equation.scaled_derivatives`. Refinement
    scores points by R alone.

    >>> problem = PricingProblem(Operator(operators.PRESETS["smoke"]))
    >>> {name: points.count for name, points in problem.sets.items()}
    {'physics': 256, 'atm': 32, 'boundary': 32}

    Parameters
    ----------
    operator : in the dtype and on the device to train on
    config : of the points and weights; the operator's own by default. Of the same model
    rank, world : which share of the points is this process's (the points themselves are drawn
        and refined alike in every process)

    The points of every step follow from `config.seed` and the step alone.
    """

    def __init__(
        self,
        operator: Operator,
        config: Config | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.operator = operator
        self.model, self.claim = operator.model, operator.claim
        self.config = config or operator.config
        require(self.config.model == self.model.name, "config", self.config.model, self.model.name)
        self.rank, self.world = rank, world
        # derivatives of the residual in the loss, and how many points a difference takes
        self.order = next((n for n in (2, 1) if self.config.sobolev[n - 1]), 0)
        self._near = self.order + 1 if self.order and self.config.sobolev_step else 1
        self._last = True  # a loss that no training has begun is whole
        self.sets: dict[str, Points] = {}
        c, generator = self.config, self._generator(0)
        self._domain: dict[str, Any] = dict(
            model=self.model, domain=c.domain, edge_share=c.edge_share
        )
        self.sets["physics"] = self._interior(generator)
        if c.atm:
            self.sets["atm"] = collocation.draw_at_the_money(
                c.atm, generator=generator, **self._domain
            )
        if c.boundary:
            self.sets["boundary"] = self._edges(c.boundary, generator)
        self._rebuild()

    # -- the points ------------------------------------------------------------------------------

    def begin(self, phase: Phase, number: int, step: int) -> None:
        """Renew the points: fresh ones each step, or RAR every `rar_every` steps.

        Quasi-Newton methods need a fixed loss: their points stay, once the boundary set has been
        extended.
        """
        c = self.config
        self._last = number == len(c.phases) - 1
        generator = self._generator(1 + number * 10_000_000 + step)
        if phase.fixed_points:
            if c.boundary_second and "more boundary" not in self.sets:
                self.sets["more boundary"] = self._edges(c.boundary_second, generator)
                self._rebuild()
        elif c.sampling == "fresh":
            self.sets["physics"] = self._interior(generator)
            self._rebuild()
        elif step > 0 and step % c.rar_every == 0:
            self._refine(generator)
            self._rebuild()

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_000_007 + step)

    def _interior(self, generator, size=None) -> Points:
        c = self.config
        size = c.points if size is None else size
        if c.sampling == "fresh" and not isinstance(size, tuple):
            where = dict(spread=c.spread, tau_power=c.tau_power, **self._domain)
            points = collocation.draw_similar(size, generator=generator, **where)
            w = self.model.expected_variance(points.p, points.tau, *points.state)
            known = w.clamp_min(1e-12).log(), points.p.r * points.tau
            return replace(points, x=self.claim.of(points.p).alive(points.x, *known))
        return collocation.draw(size, x_map=c.x_map, generator=generator, **self._domain)

    def _edges(self, size, generator) -> Points:
        """Points half of which are at x_min and half at x_max."""
        points = collocation.draw(size, generator=generator, **self._domain)
        low, high = self.config.domain["x"]
        even = torch.arange(len(points.x), device=points.x.device) % 2 == 0
        x = torch.where(even, points.x.new_tensor(low), points.x.new_tensor(high))
        return Points(x, points.state, points.tau, points.p)

    @torch.no_grad()
    def _refine(self, generator) -> None:
        c, active = self.config, self.sets["physics"]

        def sizes(n: int) -> tuple[int, int]:
            return max(1, round(c.rar_candidates * n)), max(1, round(c.rar_replaced * n))

        n, count = sizes(len(active.x))
        if not active.grid:
            candidates = self._interior(generator, n)
            scores = self._scores(candidates)
            self.sets["physics"] = collocation.refine(
                active, candidates, scores, count, generator=generator
            )
            return
        # A product set has two sides; each is refined against the other.
        m, count_p = sizes(len(active.p.r))
        drawn = self._interior(generator, (m, n))
        candidates = Points(drawn.x, drawn.state, drawn.tau, active.p)
        scores = self._scores(candidates).mean(0)
        renewed = collocation.refine(active, candidates, scores, count, generator=generator)
        scores = self._scores(Points(active.x, active.state, active.tau, drawn.p)).mean(1)
        self.sets["physics"] = collocation.refine_parameters(
            renewed, drawn.p, scores, count_p, generator=generator
        )

    def _scores(self, points: Points) -> Tensor:
        """R^2 + lambda_max R^4 at each point, float64 on the CPU."""
        like = dict(dtype=self.operator.dtype, device=self.operator.device)
        squared = torch.cat(
            [self.residual(piece.to(**like)) ** 2 for piece in points.chunks(self.config.chunk)],
            dim=-1,
        )
        return (squared + self.config.lambda_max * squared**2).double().cpu()

    def _rebuild(self) -> None:
        """Cut this process's share into pieces, in the operator's dtype and on its device."""
        like = dict(dtype=self.operator.dtype, device=self.operator.device)
        self._pieces = {}
        for name, points in self.sets.items():
            pieces = [
                p.to(**like) for p in points.shard(self.rank, self.world).chunks(self.config.chunk)
            ]
            self._pieces[name] = [(p, self._fixed(p) if name not in _EDGES else None)
                                  for p in pieces]  # fmt: skip

    def _scale(self, points: Points) -> Tensor:
        """sqrt(w), the width over which the price bends: as the points, or (M, P)."""
        w = self.model.expected_variance(points.p, points.tau, *points.state)
        return w.clamp_min(1e-12).sqrt()

    def _half(self, points: Points) -> Tensor:
        """Half the width of the differences, (P,): on a grid for all parameters alike."""
        half = self.config.sobolev_step * self._scale(points)
        return half.mean(0) if points.grid else half

    def _around(self, points: Points) -> Points:
        """The points of the differences, set after set: x - half, x if wanted, x + half."""
        if (n := self._near) == 1:
            return points
        half, x = self._half(points), points.x
        x = torch.cat([x - half, x + half] if n == 2 else [x - half, x, x + half])
        state = tuple(y.repeat(n) for y in points.state)
        p = points.p if points.grid else points.p.map(lambda v: v.repeat(n))
        return Points(x, state, points.tau.repeat(n), p)

    def _fixed(self, points: Points) -> Tensor | None:
        """The part of a linear ansatz's residual that the weights do not change."""
        if not self._linear(points):
            return None
        points = self._around(points)
        return equation.anchor_residual(
            points.x, points.state, points.tau, points.p, model=self.model, claim=self.claim
        )

    def _linear(self, points: Points) -> bool:
        c, claim = self.operator.config, type(self.claim)
        plain = claim.shape is Claim.shape and claim.condition is Claim.condition
        plain = plain and self.claim.european
        separable = self.model.separable and set(self.model.states) == set(self.model.noises)
        deeponet = c.ansatz == "anchor" and c.network == "deeponet"
        return deeponet and points.grid and separable and plain

    # -- the loss --------------------------------------------------------------------------------

    def residual(self, points: Points, fixed: Tensor | None = None) -> Tensor:
        """Eq. 5 at every point, (P,) or (M, P): bilinear where the ansatz allows, else by jets."""
        network = self.operator.network
        if isinstance(network, DeepONet) and self._linear(points):
            return equation.bilinear_residual(
                network, points.x, points.state, points.tau, points.p,
                model=self.model, claim=self.claim, fixed=fixed,
            )  # fmt: skip
        return self._by_jets(points.x, points.state, points.tau, points.p)

    def _by_jets(self, x: Tensor, state: tuple[Tensor, ...], tau: Tensor, p) -> Tensor:
        u = self.operator.on(equation.coordinates(x, state, tau, self.model, p), p)
        r = equation.short_residual(u, state, p, self.model)
        return self.claim.condition(r, u.value, x)

    def _early(self, residual: Tensor, tau: Tensor) -> Tensor:
        """The residual as it counts: less in the last days."""
        early = self.config.early
        return residual * (tau / (tau + early)) ** 0.25 if early else residual

    def _with_derivatives(self, points: Points, fixed: Tensor | None) -> tuple[Tensor, ...]:
        """R, s R_x and s^2 R_xx, as many as the loss asks for; R wherever it was computed."""

        def at(points, fixed=None):
            return self._early(self.residual(points, fixed), points.tau)

        if self._near > 1:
            r = at(self._around(points), fixed)
            values = r.unflatten(-1, (self._near, -1)).unbind(-2)
            half = self._half(points)
            return r, *equation.scaled_differences(values, self._scale(points), half)
        if not self.order:
            return (at(points, fixed),)

        # of every pair by itself: a product of parameters and points is written out
        each = _written_out(points)

        def along(x):
            return at(Points(x, each.state, each.tau, each.p))

        found = equation.scaled_derivatives(along, each.x, self._scale(each), self.order)
        return at(points, fixed), *found

    def _interior_loss(self, points: Points, fixed: Tensor | None) -> Tensor:
        r, *derivatives = self._with_derivatives(points, fixed)
        c = self.config
        loss = equation.physics_loss(r, c.lambda_max, c.robust)
        for weight, d in zip(c.sobolev, derivatives, strict=False):
            loss = loss + weight * d.square().mean()
        return loss

    def _negative_gamma(self, x: Tensor, state: tuple[Tensor, ...], tau: Tensor, p) -> Tensor:
        """max(-s Gamma, 0) at every point."""
        still = tuple(Jet(y, pairs=_XX) for y in state)
        u = self.operator.on((Jet(x, pairs=_XX, x=1), still, Jet(tau, pairs=_XX)), p)
        _, gamma = delta_gamma(x, u.x, u.xx)
        return torch.relu(-self._scale(Points(x, state, tau, p)) * gamma)

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """The terms of eq. 11, piece by piece: physics, atm and boundary, with their weights."""
        c = self.config
        for name, weight in (("physics", 1.0), ("atm", c.lambda_atm)):
            pieces = self._pieces.get(name, ())
            count = sum(piece.count for piece, _ in pieces)
            for piece, fixed in pieces:
                share = piece.count / count
                loss = weight * share * self._interior_loss(piece, fixed)
                if penalty := self._penalty(name):
                    below = self._negative_gamma(piece.x, piece.state, piece.tau, piece.p)
                    loss = loss + penalty * share * below.square().mean()
                yield {name: loss}
        edges = [piece for name in _EDGES for piece, _ in self._pieces.get(name, ())]
        count = sum(piece.count for piece in edges)
        for b in edges:
            u = self.operator.value(b.x, b.state, b.tau, b.p)
            loss = equation.boundary_loss(u, b.x, b.tau, b.p.r, self.claim)
            yield {"boundary": c.lambda_boundary * (b.count / count) * loss}

    def _penalty(self, name: str) -> float:
        """The weight of the penalty on negative Gammas in this set, in this phase."""
        where = "atm" if "atm" in self.sets else "physics"
        return self.config.gamma_penalty if self._last and name == where else 0.0

    def residuals(self) -> Iterator[tuple]:
        """The same as vectors whose squares sum to the loss: (function of weights and row, rows).

        A row is one point with its parameters, x, states, tau and p, and half the width of its
        differences; products are written out.
        """
        c = self.config
        sets = [("physics", 1.0), ("atm", c.lambda_atm)]
        sets += [(name, c.lambda_boundary) for name in _EDGES]
        edges = sum(p.count for name in _EDGES for p, _ in self._pieces.get(name, ()))
        for name, weight in sets:
            pieces = [piece for piece, _ in self._pieces.get(name, ())]
            if name in _EDGES:
                kinds: dict[str | int, tuple[float, int]] = {"edge": (weight, 1)}
            else:
                kinds = {"value": (weight, self._near), "gamma": (self._penalty(name), 1)}
                kinds |= {n: (weight * v, 1) for n, v in enumerate(c.sobolev, 1)}
            count = edges if name in _EDGES else sum(piece.count for piece in pieces)
            for kind, (factor, near) in kinds.items():
                row = _Row(self, kind, (factor / count / near) ** 0.5 if count else 0.0)
                for piece in pieces if factor else ():
                    at = self._around(piece) if kind == "value" else piece
                    given = (at.x, *at.state, at.tau, *at.p, self._half(at))
                    values = torch.broadcast_tensors(*given)
                    yield row.of_weights, tuple(v.reshape(-1) for v in values)

    @torch.no_grad()
    def locate(self) -> str:
        """The first point whose residual is not finite."""
        for name, pieces in self._pieces.items():
            for points, fixed in pieces:
                if name in _EDGES:
                    r = self.operator.value(points.x, points.state, points.tau, points.p)
                else:
                    points = self._around(points)
                    r = self.residual(points, fixed)
                bad = (~torch.isfinite(r)).nonzero()
                if len(bad):
                    where = points.select(bad[0][-1])
                    p = where.p[bad[0][0], 0] if points.grid else where.p
                    names = ("x", *self.model.states, "tau", *p._fields)
                    values = zip(names, (where.x, *where.state, where.tau, *p), strict=True)
                    at = ", ".join(f"{k} = {float(v):.4g}" for k, v in values)
                    return f"{len(bad)} of {r.numel()} values in the {name} set, first at {at}"
        return "every residual is finite alone; their powers overflow"

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict:
        return {name: points.tensors() for name, points in self.sets.items()}

    def load_state_dict(self, state: dict) -> None:
        shape = self.sets["physics"]
        for name, tensors in state.items():
            self.sets[name] = shape.with_tensors({k: v.cpu() for k, v in tensors.items()})
        self._rebuild()


def _written_out(points: Points) -> Points:
    """The same as points that each have parameters of their own."""
    if not points.grid:
        return points
    values = torch.broadcast_tensors(points.x, *points.state, points.tau, *points.p)
    n = 2 + len(points.state)
    x, *state, tau = (v.reshape(-1) for v in values[:n])
    return Points(x, tuple(state), tau, type(points.p)(*(v.reshape(-1) for v in values[n:])))


class _Row(nn.Module):
    """One weighted residual as a function of the operator's weights and one point.

    Of a kind: "edge", "value" (R), 1 or 2 (s R_x, s^2 R_xx) or "gamma".
    """

    def __init__(self, problem: PricingProblem, kind: str | int, weight: float):
        super().__init__()
        self.operator, self.problem = problem.operator, [problem]  # in a list: it is no module
        self.kind, self.weight = kind, weight

    def forward(self, *row: Tensor) -> Tensor:
        (problem,) = self.problem
        states = len(problem.model.states)
        x, *some, tau = row[: 2 + states]
        state, half = tuple(some), row[-1]
        p = problem.model.Parameters(*row[2 + states : -1])
        if self.kind == "edge":
            u = problem.operator.value(x, state, tau, p)
            return self.weight * (u - problem.claim.edge(x, tau, p.r))
        if self.kind == "gamma":
            return self.weight * problem._negative_gamma(x, state, tau, p)

        def residual(x):
            return problem._early(problem._by_jets(x, state, tau, p), tau)

        if self.kind == "value":
            r = residual(x)
            return self.weight * r * torch.sqrt(1 + problem.config.lambda_max * r * r)
        order, scale = int(self.kind), problem._scale(Points(x, state, tau, p))
        if problem._near == 1:
            found = equation.scaled_derivatives(residual, x, scale, order)
        else:
            at = [x - half, x + half] if order == 1 else [x - half, x, x + half]
            found = equation.scaled_differences([residual(v) for v in at], scale, half)
        return self.weight * found[-1]

    def of_weights(self, weights: dict[str, Tensor], *row: Tensor) -> Tensor:
        named = {f"operator.{k}": v for k, v in weights.items()}
        return torch.func.functional_call(self, named, row)


def train_operator(
    config: Config, directory: Path | str, *, device: str | torch.device = "cpu", **options
) -> tuple[Operator, dict]:
    """Train the operator of a configuration, or resume where a killed run stopped.

    >>> from tempfile import TemporaryDirectory
    >>> short = operators.PRESETS["smoke"].to_dict() | {"phases": [dict(optimizer="adam", steps=2)]}
    >>> with TemporaryDirectory() as folder:
    ...     _, summary = train_operator(Config.from_dict(short), folder, progress=False)
    >>> summary["skipped"]  # updates
    0

    Parameters
    ----------
    directory : for `checkpoint.pt` and `log.jsonl`; made if it does not exist
    device : to train on; under ``torchrun`` the process group is the caller's to initialise
    options : passed on to `training.train`

    Returns
    -------
    The trained operator and what `training.train` returns.

    Raises
    ------
    ValueError
        The directory holds another configuration's run.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    distributed = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    claim_folder(directory, config, write=rank == 0)
    operator = Operator(config).to(device)
    problem = PricingProblem(operator, rank=rank, world=world)
    summary = train(
        operator, problem, config.phases,
        checkpoint=directory / "checkpoint.pt", log=directory / "log.jsonl", **options,
    )  # fmt: skip
    return operator, summary


def claim_folder(directory: Path, config: Config, *, write: bool) -> None:
    """Make a run's folder its own: `config.json` says whose it is. One process in many writes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     claim_folder(Path(folder), Config(), write=True)
    ...     print(*os.listdir(folder))
    config.json

    Raises
    ------
    ValueError
        It holds another configuration's run, or a damaged record of one.
    """
    record = directory / "config.json"
    if record.exists():
        try:
            found = Config.from_dict(json.loads(record.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{record} is no configuration: {error}") from error
        if found != config:
            raise ValueError(
                f"directory must be new or hold a run of {config.name!r}, got {directory}"
            )
    elif write:
        part = record.with_name(f"config.json.{os.getpid()}")
        part.write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        os.replace(part, record)

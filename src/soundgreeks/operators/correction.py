r"""How wrong an operator is, from its own residual and paths: no true price is needed.

Let û be exact at maturity and :math:`R = \hat u_\tau - N[\hat u]` its residual. Ito's formula for
:math:`e^{-rs}\hat u(X_s, Y_s, \tau - s)` along the paths of the model gives

.. math:: \hat u(x, y, \tau) - u(x, y, \tau)
          = E\int_0^\tau e^{-rs} R(X_s, Y_s, \tau - s)\,ds,

an expectation of something as small as the residual: few paths do. Its derivatives in x are those
of R along the same paths, because x moves a path of ln S as a whole.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import require
from ..models import paths as simulation
from ..models.claims import Claim
from ..models.model import as_states
from . import equation

SMOOTH = ("anchor", "implied", "implied_scaled", "smile", "bump")
SCRAMBLES = 32  # independent scrambles of the Sobol points: their spread is the standard error
# Three standard errors from 32 values hold 99.5 %, as Student's t has it; stretched, 99.73 %.
_STUDENT = 1.0870
_ROWS = 2**12  # paths evaluated at a time


class Corrected(NamedTuple):
    """A price in units of strike, less the estimated error of the operator; its standard error.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> sound = weights.load("sound")
    >>> found = sound.price(0.0, 0.04, 1.0, p, with_error=True, paths=256)
    >>> bool((found.price - 0.1039422).abs() < 4 * found.error + 5e-8)  # the exact price
    True
    """

    price: Tensor
    error: Tensor


class Correction(NamedTuple):
    """c = û - u, c_x and c_xx - c_x, which Gamma is made of; standard errors; each (options,).

    >>> p = heston.sample_parameters(1)
    >>> x, nu, tau = torch.tensor([[0.0], [0.04], [1.0]], dtype=torch.float64)
    >>> found = operators.correction.estimate(weights.load("sound"), x, nu, tau, p, paths=256)
    >>> found.value.shape, float(found.bend)  # no derivative was asked for
    (torch.Size([1]), 0.0)
    """

    value: Tensor
    slope: Tensor
    bend: Tensor
    value_error: Tensor
    slope_error: Tensor
    bend_error: Tensor


def require_identity(operator) -> None:
    """Raise ValueError unless the operator is smooth and exact at maturity.

    >>> require_identity(weights.load("sound"))
    """
    name, claim = operator.config.ansatz, type(operator.claim)
    require(name in SMOOTH, "ansatz", repr(name), f"one of {', '.join(SMOOTH)}: it has no kink")
    plain = claim.shape is Claim.shape and claim.condition is Claim.condition
    plain = plain and operator.claim.european
    require(plain, "claim", repr(operator.claim.name), "European")


def samples(operator, x: Tensor, state, tau: Tensor, p, draws: Tensor, order: int = 0):
    r"""One sample a path of the identity, and of its derivatives in x up to `order`: each (n,).

    :math:`\tau e^{-rs} R(X_s, Y_s, \tau - s)` at a time s drawn with the path.

    >>> p = heston.sample_parameters(1)
    >>> x, nu, tau = torch.tensor([[0.0], [0.04], [1.0]], dtype=torch.float64)
    >>> draws = torch.full((1, 6), 0.5, dtype=torch.float64)  # the median of everything, four steps
    >>> (sample,) = operators.correction.samples(weights.load("sound"), x, (nu,), tau, p, draws)
    >>> bool(sample.abs() < 1e-3)
    True

    Parameters
    ----------
    operator : a pricing operator, exact at maturity; float64 is worth its time here
    x, state, tau, p : (n,) each, state a tuple: one option a path
    draws : (n, 2 + steps noises) uniforms in (0, 1): the time, the price's own noise, the steps
    """
    model = operator.model
    count = (draws.shape[1] - 2) // len(model.noises)
    s = tau * draws[:, 0]
    z = torch.special.ndtri(draws[:, 1:])
    noise = z[:, 1:].T.reshape(count, len(model.noises), len(x))
    end = simulation.steps(model, state, s, p, noise)
    move = p.r * s - 0.5 * end.integrated + end.martingale + end.unexplained.sqrt() * z[:, 0]
    weight = tau * torch.exp(-p.r * s)
    late = torch.where(tau > 0, tau - s, 1.0)  # at maturity there is no error: any time will do

    def residual(there):
        at = equation.coordinates(there, end.state, late, model, p)
        return weight * equation.short_residual(operator.on(at, p), end.state, p, model)

    with torch.set_grad_enabled(order > 0):
        there = (x + move).requires_grad_(order > 0)
        found = [residual(there)]
        for i in range(order):
            (slope,) = torch.autograd.grad(found[-1].sum(), there, create_graph=i + 1 < order)
            found.append(slope)
    return [v.detach() for v in found]


def estimate(
    operator, x: Tensor, state, tau: Tensor, p, *, paths: int = 2**12, count: int | None = None,
    seed: int = 0, order: int = 0,
) -> Correction:  # fmt: skip
    """The correction of each option from `paths` of its own, in `SCRAMBLES` Sobol sets.

    The bias of the steps is that of the correction, not of the price, and is not in the error.
    All options see the same noise.

    >>> p = heston.sample_parameters(1)
    >>> x, nu, tau = torch.tensor([[0.0], [0.04], [1.0]], dtype=torch.float64)
    >>> found = operators.correction.estimate(weights.load("sound"), x, nu, tau, p, paths=64)
    >>> found.value_error < 1e-4
    tensor([True])

    Parameters
    ----------
    x, state, tau, p : (options,) each
    paths : of each option, a multiple of `SCRAMBLES`; a power of two is best
    count : time steps from today to the time at which a path meets the residual; by default the
        model's (`Model.count`)
    order : derivatives in x wanted, 0 to 2; the others are zero

    Raises
    ------
    ValueError
        `paths` is not a positive multiple of `SCRAMBLES`, `count` is below one, or the operator is
        not smooth and exact at maturity, without which the identity does not hold.
    """
    count = operator.model.count if count is None else count
    per = paths // SCRAMBLES
    require(per > 0 and paths % SCRAMBLES == 0, "paths", paths, f"a multiple of {SCRAMBLES}")
    require(count >= 1, "count", count, "at least 1")
    require_identity(operator)
    state, model = as_states(state), operator.model
    dimension, source = 2 + count * len(model.noises), torch.Generator().manual_seed(seed)
    sets = []
    for _ in range(SCRAMBLES):
        number = int(torch.randint(2**31 - 1, (), generator=source))
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=number)
        sets.append(engine.draw(per, dtype=torch.float64) + 2.0**-31)
    draws = torch.cat(sets).to(x)
    found, step = [], max(1, _ROWS // paths)
    for i in range(0, len(x), step):
        part = slice(i, i + step)
        options = len(x[part])

        def each(v, part=part):
            return v[part].repeat_interleave(paths)

        given = each(x), tuple(map(each, state)), each(tau), p.map(each)
        parts = samples(operator, *given, draws.repeat(options, 1), order)
        if order == 2:
            parts[2] = parts[2] - parts[1]
        means = [v.view(options, SCRAMBLES, per).mean(-1) for v in parts]
        values = [v.mean(-1) for v in means]
        errors = [_STUDENT * v.std(-1) / math.sqrt(SCRAMBLES) for v in means]
        missing = [torch.zeros_like(values[0])] * (2 - order)
        found.append((*values, *missing, *errors, *missing))
    return Correction(*(torch.cat(c) for c in zip(*found, strict=True)))

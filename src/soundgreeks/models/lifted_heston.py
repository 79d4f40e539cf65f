r"""Rough Heston, lifted: a variance with memory as three factors that one noise moves.

.. math:: V_t = V_0 + \int_0^t K(t-s)\big(\kappa(\theta - V_s)\,ds + \sigma\sqrt{V_s}\,dZ_s\big),
          \qquad K(t) = \frac{t^{H-1/2}}{\Gamma(H + 1/2)}

(El Euch and Rosenbaum 2019), with the kernel replaced by :math:`\sum_i c_i e^{-x_i t}`
(`rough_kernel`, H = 0.1). Each exponential is a factor,

.. math:: dU_i = \big(\kappa(\theta - V) - x_i U_i\big)\,dt + \sigma\sqrt V\,dZ, \qquad
          V = V_0 + \sum_i c_i U_i, \qquad d\langle \ln S, Z\rangle = \rho\sqrt V\,dt .

The slowest factor rests, :math:`x_1 = 0`. So it may carry V_0, and the state is (V, U_2, U_3): no
parameter remembers where the variance began, and at the pricing time the hidden factors are 0.

In :math:`y_1 = (V - \theta - \sum_{i>1} c_i U_i)/\sqrt{c_1}`, :math:`y_i = \sqrt{c_i}\,U_i` the
drift is :math:`-My` with the symmetric matrix :math:`M = \mathrm{diag}(x) + \kappa\sqrt c\sqrt
c^\top`. Its eigenvalues :math:`\mu_j` are the speeds that the variance really reverts with, and
forward variances and the response to a kick of the noise are sums of exponentials:

.. math:: \xi_s = E[V_s] = \theta + \sum_j a_j e^{-\mu_j s}, \qquad
          r(s) = \sum_j g_j e^{-\mu_j s}, \quad g_j > 0 .
"""

from collections import namedtuple
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from . import smile
from .domain import Domain
from .heston import TABLE_I
from .model import (
    CORRELATION,
    FINITE,
    NON_NEGATIVE,
    POSITIVE,
    Model,
    ParameterTuple,
    Step,
    as_states,
    register,
)
from .rough_kernel import Lift

LIFT = Lift((0.0, 3.5182, 56.6613), (0.612252, 1.45224, 5.38878))  # type: ignore[arg-type]
"""`rough_kernel.lift(3)`, to six digits."""
_LEAST = 1e-8  # the variance in logarithms and roots
_NODES = 8  # of the quadrature of the smile's moments
_PARTS = (1 / 16, 1 / 4)  # of the time left, over which a network sees the variance's mean
_STEPS = 8  # of the paths that say where to impose the equation


class Parameters(ParameterTuple, namedtuple("Parameters", "kappa theta sigma rho r")):
    """As Heston's; kappa and sigma in units that the kernel makes, year^(-H - 1/2) and so on."""

    __slots__ = ()


class Modes(NamedTuple):
    """Of M, for n factors and parameters of any shape (...).

    >>> p = MODEL.checked(Parameters(0.3, torch.tensor([0.04, 0.09]), 0.4, -0.7, 0.03))
    >>> MODEL.modes(p).states.shape, MODEL.modes(p[:]).states.shape
    (torch.Size([3, 3]), torch.Size([3, 3, 2]))
    """

    speed: Tensor  # mu_j, (n, ...)
    kick: Tensor  # g_j, (n, ...)
    states: Tensor  # each a_j by nu - theta and the hidden factors, (n, n, ...)
    hidden: Tensor  # each hidden factor by the a_j, (n - 1, n, ...)


def is_tame(p: Parameters) -> Tensor:
    """Whether sigma^2 < (4 + kappa) theta: far beyond Feller in all of Table I. Shape of `p`.

    >>> is_tame(Parameters(0.3, 0.04, 0.4, -0.7, 0.03))
    tensor(True)
    """
    return torch.as_tensor((4 + p.kappa) * p.theta > p.sigma**2)


class LiftedHeston(Model):
    """The coefficients, of three factors.

    >>> p = Parameters(kappa=0.3, theta=0.04, sigma=0.4, rho=-0.7, r=0.03)
    >>> [len(terms) for terms in MODEL.drift(p, 0.04, 0.0, 0.0).values()]
    [3, 2, 2]
    """

    name = "lifted_heston"
    Parameters = Parameters
    lift = LIFT
    states = ("nu", "u2", "u3")
    noises = {"d": {"nu": sum(LIFT.weights), "u2": 1.0, "u3": 1.0}}
    domain = Domain(
        {**TABLE_I, "kappa": (0.1, 3.0), "tau": (0.0, 2.0), "u2": (0.0, 0.0), "u3": (0.0, 0.0)},
        where="tame",
    )
    meaning = dict(
        kappa=POSITIVE, theta=POSITIVE, sigma=NON_NEGATIVE, rho=CORRELATION, u2=FINITE, u3=FINITE
    )
    conditions = {"tame": is_tame}
    edges = {"tame": 1.0}
    timed = True
    count = 40  # of days, at the end
    _last: Any = (None, None, None)

    def whole(self, state):
        """The hidden factors at their start, 0, where only the variance is given."""
        given = as_states(state)
        return given if len(given) > 1 else (given[0], *[0.0] * (len(self.lift.speeds) - 1))

    # -- the equation ----------------------------------------------------------------------------

    def variance(self, p, nu, *u):
        return nu.clamp_min(_LEAST)

    def covariances(self, p, nu, *u):
        v = self.variance(p, nu)
        return {("x", "d"): [(p.rho * p.sigma, v)], ("d", "d"): [(p.sigma**2, v)]}

    def drift(self, p, nu, *u):
        speeds, weights = (v[1:] for v in self.lift)
        back = [(p.kappa * p.theta, 1.0), (-p.kappa, nu)]
        all_of_it = sum(self.lift.weights)
        found = {"nu": [(all_of_it * f, g) for f, g in back]}
        relax = sum(c * x * y for c, x, y in zip(weights, speeds, u, strict=True))
        found["nu"].append((-1.0, relax))
        for name, x, y in zip(self.states[1:], speeds, u, strict=True):
            found[name] = [(p.kappa * p.theta - p.kappa * nu, 1.0), (-x, y)]
        return found

    # -- forward variances -----------------------------------------------------------------------

    def modes(self, p) -> Modes:
        """Eigenvalues and vectors in double precision, returned in the dtype of the parameters.

        >>> p = MODEL.checked(Parameters(0.3, 0.04, 0.4, -0.7, 0.03))
        >>> MODEL.modes(p).speed, MODEL.modes(p).kick.sum()  # the sum of all weights
        (tensor([ 0.1..., ...], dtype=torch.float64), tensor(7.4533, dtype=torch.float64))
        """
        kappa = torch.as_tensor(p.kappa)
        if kappa.requires_grad or kappa.is_inference():
            return self._modes(kappa)
        version = kappa._version  # the same parameters are asked for several times in a row
        last, known, found = self._last
        if last is not kappa or known != version:
            found = self._modes(kappa)
            self._last = kappa, version, found
        return found

    def _modes(self, kappa: Tensor) -> Modes:
        like: Any = dict(dtype=torch.float64, device=kappa.device)
        x, c = (torch.tensor(v, **like) for v in self.lift)
        root = c.sqrt()
        matrix = torch.diag(x) + kappa.double()[..., None, None] * (root[:, None] * root)
        speed, vectors = torch.linalg.eigh(matrix)
        along = root @ vectors  # (..., j)
        share = (along[..., None] * vectors.mT).movedim((-2, -1), (0, 1))  # (j, i, ...), of y_i
        first = share[:, 0] / root[0]  # of nu - theta
        hidden = [share[:, i] * root[i] - first * c[i] for i in range(1, len(c))]
        kick = along.movedim(-1, 0) ** 2
        back = [share[:, i] / (root[i] * kick) for i in range(1, len(c))]
        found = speed.movedim(-1, 0), kick, torch.stack([first, *hidden], 1), torch.stack(back)
        return Modes(*(v.to(kappa.dtype) for v in found))

    def deviations(self, p, modes: Modes, *state) -> list:
        """The a_j of states, tensors or jets: one a mode, each of the states' shape."""
        nu, *u = state
        apart, found = nu + -p.theta, []
        for first, *hidden in modes.states:
            parts = [y * part for y, part in zip(u, hidden, strict=True)]
            found.append(sum(parts, apart * first))
        return found

    def expected_variance(self, p, tau, *state):
        """Exact, as the drift is linear.

        >>> p = MODEL.checked(Parameters(0.3, 0.04, 0.4, -0.7, 0.03))
        >>> MODEL.expected_variance(p, *torch.tensor([1.0, 0.09, 0.0, 0.0], dtype=torch.float64))
        tensor(0.0811, dtype=torch.float64)
        """
        modes, total = self.modes(p), tau * p.theta
        for mu, a in zip(modes.speed, self.deviations(p, modes, *state), strict=True):
            total = a * (jets.expm1(tau * -mu) / -mu) + total
        return total

    def smile_moments(self, p, tau, y, *state):
        r"""With :math:`R(t) = \int_0^t r` and :math:`h_s = \int_0^s \xi_t\,r(s - t)\,dt`,

        .. math:: A = \int_0^\tau \xi_s R(\tau - s)\,ds, \quad
                  B = \int_0^\tau \xi_s R(\tau - s)^2\,ds, \quad
                  C = \int_0^\tau R(\tau - s)\,h_s\,ds,

        by Gauss nodes that crowd at both ends, where the fast factors live. Rough variance is wild
        on short times as well, where the expansion overshoots: with v the relative variance of the
        integrated variance, of each order n in sigma (1 + v/2)^(-n/2) is kept.

        >>> p = MODEL.checked(Parameters(0.3, 0.04, 0.4, -0.7, 0.03))
        >>> tau, nu, u = torch.tensor([1.0, 0.04, 0.0], dtype=torch.float64)
        >>> MODEL.smile_moments(p, tau, (0.04 * tau).log(), nu, u, u).spread
        tensor(0.8843, dtype=torch.float64)
        """
        modes = self.modes(p)
        a, kick, speed = self.deviations(p, modes, *state), list(modes.kick), list(modes.speed)
        q, weight = smile.nodes(tau, *state, *p, count=_NODES)
        q, weight = q * q * (3 - 2 * q), weight * 6 * q * (1 - q)
        past, left = tau * q, tau * (1 - q)
        decay = [jets.exp(past * -mu) for mu in speed]
        xi, later, h = p.theta, 0.0, 0.0
        for j, (mu, g) in enumerate(zip(speed, kick, strict=True)):
            xi = a[j] * decay[j] + xi
            later = jets.expm1(left * -mu) * (-g / mu) + later
            h = jets.expm1(past * -mu) * (-g * p.theta / mu) + a[j] * decay[j] * past * g + h
            for i in range(j + 1, len(speed)):  # a deviation of one speed, a kick of another
                gap = speed[i] - mu
                both = a[j] * kick[i] + a[i] * g
                h = decay[j] * (jets.expm1(past * -gap) / -gap) * both + h
        skew, square = p.sigma * p.rho, jets.exp(y * -2)
        first = smile.total(xi * later * weight) * tau
        second = smile.total(xi * (later * later) * weight) * tau
        mixed = smile.total(h * later * weight) * tau
        spread = (second * square * p.sigma**2).clamp_min(0.0)  # for states that no path reaches
        less = jets.exp(jets.log(spread * 0.5 + 1) * -0.5)
        return smile.Moments(
            first * jets.exp(y * -1.5) * less * skew,
            mixed * square * (less * less) * skew**2,
            spread * (less * less),
        )

    def features(self, p, *state: Jet, tau: Jet) -> list[Jet]:
        """What the variance will be on average, and the parameters.

        The first sixteenth and quarter of the time left, beside the whole in the anchor, say what
        a price sees of three factors. The instantaneous variance would be a bad coordinate: the
        noise moves it so fast that its least weight in a network makes a large residual.
        """
        modes, level = self.modes(p), -0.5 * torch.log(p.theta)
        a, relative = self.deviations(p, modes, *state), []
        for part in _PARTS:
            s = tau.clamp_min(1e-8) * part
            total = jets.exp(jets.log(s) * -1.0)
            mean = (
                sum(
                    (d * (jets.expm1(s * -mu) / -mu) for d, mu in zip(a, modes.speed, strict=True)),
                    torch.zeros_like(p.theta),
                )
                * total
                + p.theta
            )
            relative.append(jets.log(mean.clamp_min(_LEAST)) * 0.5 + level)
        constants = [
            0.5 * torch.log(p.kappa),
            1.5 - level,
            2 * self.closeness(p).sqrt() - 1,
            2 * p.rho + 1,
        ]
        return [*relative, *(Jet(c, pairs=state[0].pairs) for c in constants)]

    def smile(self, p):
        return p.sigma

    def near_edge(self, p, u, domain):
        low, high = domain["sigma"]
        edge = ((4 + p.kappa) * p.theta * (0.8 + 0.2 * u)).sqrt()
        return p._replace(sigma=torch.where((edge > low) & (edge < high), edge, p.sigma))

    def closeness(self, p):
        return p.sigma**2 / ((4 + p.kappa) * p.theta)

    def at_closeness(self, p, value):
        return p._replace(sigma=((4 + p.kappa) * p.theta * value).sqrt())

    # -- paths -----------------------------------------------------------------------------------

    def visited(self, p, domain, u, generator=None):
        """Where paths are after a time: hidden factors are never far from what moved them."""
        nu = domain.scale("nu", u[0] ** 2)
        elapsed = domain["tau"][1] * u[1] ** 2
        state: tuple[Tensor, ...] = (nu, torch.zeros_like(nu), torch.zeros_like(nu))
        modes, dt = self.modes(p), elapsed / _STEPS
        noise = torch.randn(_STEPS, len(nu), generator=generator, dtype=nu.dtype)
        for z in noise:
            state = self._step(p, modes, dt, z, *state).state
        return state

    def times(self, tau, count):
        """Shorter and shorter: of the fast factors, only the last days are left at the end.

        >>> MODEL.times(torch.tensor(1.0), 2)
        [tensor(0.7500), tensor(0.2500)]
        """
        return [tau * ((2 * i + 1) / count**2) for i in reversed(range(count))]

    def step(self, p, dt, z, *state):
        r"""Half a step of drift, exact; a kick of all factors at once; half a step of drift.

        In a kick :math:`dV = \sigma\sum_i c_i\sqrt V\,dZ`, a square root of time changed so fast
        that it often ends at zero: it is drawn as Andersen's QE scheme draws it (2008), with its
        true mean and variance.

        >>> p = MODEL.checked(Parameters(0.3, 0.04, 0.4, -0.7, 0.03))
        >>> dt, nu, u = torch.tensor([0.01, 0.04, 0.0], dtype=torch.float64)
        >>> MODEL.step(p, dt, torch.zeros(1), nu, u, u).integrated < nu * dt  # kicked downwards
        tensor(True)
        """
        return self._step(p, self.modes(p), dt, z[0], *state)

    def _step(self, p, modes, dt, z, *state) -> Step:
        sigma, total = torch.as_tensor(p.sigma).clamp_min(1e-8), sum(self.lift.weights)
        (nu, *u), before = self._drift(p, modes, dt / 2, *state)
        nu = nu.clamp_min(0)
        after = _kicked(nu, (total * sigma) ** 2 * dt, z)
        kick = (after - nu) / total
        (nu, *u), behind = self._drift(p, modes, dt / 2, after, *(y + kick for y in u))
        integrated = before + behind
        return Step(
            (nu.clamp_min(0), *u), integrated, p.rho * kick / sigma, (1 - p.rho**2) * integrated
        )

    def _drift(self, p, modes, dt, *state) -> tuple[list[Tensor], Tensor]:
        """The state after dt without noise, and the variance integrated."""
        a = self.deviations(p, modes, *state)
        faded = [d * torch.expm1(-mu * dt) for d, mu in zip(a, modes.speed, strict=True)]
        moved = sum(-d / mu for d, mu in zip(faded, modes.speed, strict=True))
        after = [state[0] + sum(faded)]
        for y, shares in zip(state[1:], modes.hidden, strict=True):
            after.append(y + sum(d * share for d, share in zip(faded, shares, strict=True)))
        return after, p.theta * dt + moved


def _kicked(nu, spread, z):
    """A variable of mean nu and variance nu `spread` that is never negative, from a normal z."""
    psi = (spread / nu.clamp_min(1e-30)).clamp(1e-8, 1e8)
    few = psi.clamp_max(1.5)  # a square of a shifted normal
    b2 = 2 / few - 1 + (2 / few * (2 / few - 1)).sqrt()
    square = nu / (1 + b2) * (b2.sqrt() + z) ** 2
    zero = (psi - 1) / (psi + 1)  # else: zero with this probability, or exponential
    above = (1 - zero) / torch.special.ndtr(-z)
    tail = nu / (1 - zero) * above.clamp_min(1.0).log()
    return torch.where(psi <= 1.5, square, tail)


MODEL = register(LiftedHeston())


class Today(LiftedHeston):
    """The same at the pricing time, where the variance is the only state: what is calibrated.

    >>> Today().whole(torch.tensor(0.04))
    (tensor(0.0400), 0.0, 0.0)
    """

    states = ("nu",)  # type: ignore[assignment]


TODAY = Today()

r"""A model by its coefficients.

.. math:: d\ln S = (r - \tfrac12 s^2)\,dt + s\,dW, \qquad dY_i = m_i\,dt + \sum_d a_{id}\,dZ_d,
          \qquad d\langle \ln S, Z_d\rangle = c_d\,dt, \quad d\langle Z_d, Z_e\rangle = v_{de}\,dt

with state variables Y, one or more variance factors, moved by one or more noises Z. The price
u(x, y, tau) per unit of strike solves u_tau = N[u] with

.. math:: N[u] = (r - \tfrac12 s^2)\,u_x + \tfrac12 s^2 u_{xx} + \sum_d c_d\,u_{xd}
          + \tfrac12\sum_{d,e} v_{de}\,u_{de} + \sum_i m_i\,u_i - r u,

where a subscript d is the derivative along noise d, sum_i a_id d/dY_i. A new model is one file: a
named tuple of parameters and a subclass of `Model` with these coefficients (`garch.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._validate import extremes, require, tensors
from ..arithmetic import jets
from ..arithmetic.jets import Jet, Pairs
from . import smile
from .domain import Domain

Terms = Sequence[tuple[Tensor | float, Tensor | float]]
"""A coefficient as a sum of products f(parameters) g(state), pairs (f, g)."""


class Greeks(NamedTuple):
    """Normalised price V/K and Greeks with K = 1 (DeepSVM, eqs. 15 and 16).

    `vega` is dV/dnu, a tuple where there are several state variables; `theta` is -dV/dtau, per
    year. All of one shape, that of the arguments broadcast.

    >>> p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    >>> heston.greeks(0.0, 0.04, 1.0, p).vega
    tensor(0.3921, dtype=torch.float64)
    """

    price: Tensor
    delta: Tensor
    gamma: Tensor
    vega: Tensor | tuple[Tensor, ...]
    theta: Tensor


def delta_gamma(x: Tensor, u_x: Tensor, u_xx: Tensor) -> tuple[Tensor, Tensor]:
    """Delta = e^{-x} u_x and Gamma = e^{-2x} (u_xx - u_x), eqs. 15 and 16 with K = 1.

    Arguments and results of one shape.

    >>> delta_gamma(*torch.tensor([0.0, 0.5, 2.5]))
    (tensor(0.5000), tensor(2.))
    """
    e = torch.exp(-x)
    return e * u_x, e * e * (u_xx - u_x)


class ParameterTuple:
    """What the parameters of every model can do beside being a named tuple of numbers or tensors.

    A light tuple: nothing is checked or converted, so `torch.func.vmap` and `torch.compile` take
    it. The functions that price check it (`Model.checked`).

    >>> p = heston.Parameters(2.0, torch.tensor([0.04, 0.09]), 0.3, -0.7, 0.05)
    >>> p[1].theta
    tensor(0.0900)
    """

    __slots__ = ()

    def __getitem__(self: Any, index):
        """The same index into all parameters, broadcast against each other, e.g. ``p[:, None]``."""
        return self.map(lambda v: v[index], *torch.broadcast_tensors(*self._tensors()))

    def map(self: Any, function: Callable[[Tensor], Tensor], *values):
        """The function applied to every parameter, or to `values` in their place.

        >>> heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05).map(lambda v: 2 * v).kappa
        4.0
        """
        return type(self)(*(function(v) for v in values or self))

    @property
    def shape(self: Any) -> torch.Size:
        """The shape that the parameters broadcast to.

        >>> heston.Parameters(2.0, torch.tensor([0.04, 0.09]), 0.3, -0.7, 0.05).shape
        torch.Size([2])
        """
        return torch.broadcast_shapes(*(v.shape for v in self._tensors()))

    def stack(self: Any) -> Tensor:
        """One tensor (..., number of parameters).

        >>> heston.Parameters(2.0, torch.tensor([0.04, 0.09]), 0.3, -0.7, 0.05).stack().shape
        torch.Size([2, 5])
        """
        return torch.stack(torch.broadcast_tensors(*self._tensors()), dim=-1)

    def _tensors(self: Any) -> list[Tensor]:
        if all(isinstance(v, Tensor) for v in self):
            return list(self)
        return tensors(**self._asdict())


class Step(NamedTuple):
    """One step of the state: given it, the log price moves by N(rate dt - I/2 + M, V).

    `state` as it came in, the rest of the shape of its entries, dimensionless.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
    >>> dt = torch.tensor(0.5, dtype=torch.float64)
    >>> heston.MODEL.step(p, dt, torch.zeros(1), torch.tensor(0.09)).integrated  # nu dt
    tensor(0.0450, dtype=torch.float64)
    """

    state: tuple[Tensor, ...]
    integrated: Tensor  # I, the integral of s^2
    martingale: Tensor  # M, the part of the price's noise that the state's noises explain
    unexplained: Tensor  # V, the variance of the rest


class Model:
    """A diffusion by its coefficients; see the module's text. Subclass it and `register` one.

    Attributes
    ----------
    name : for configurations and weights files
    Parameters : the named tuple; the last field is the rate r
    states : names of the state variables
    noises : for each noise its weights on the states, a_id; by default each state has its own
    domain : ranges of parameters, x, states and tau to train and judge on
    meaning : (low, high, words) of what a parameter may be at all
    conditions : further conditions on the parameters, by name
    edges : the `closeness` at which a condition begins to fail, by name
    separable : whether `variance` does not depend on the parameters; the residual of a linear
        ansatz is then a matrix product
    closed_form : whether `greeks` is exact
    power : of a variance with the drift kappa (theta - nu) and the noise sigma nu^power, which
        `smile_moments` is for; None for any other
    timed : whether `features` ask for the time to maturity, too, as `tau`
    count : time steps that are enough for the estimate of an operator's error
    """

    name: str
    Parameters: Any
    states: tuple[str, ...] = ("nu",)
    noises: Mapping[str, Mapping[str, float]]
    domain: Domain
    meaning: Mapping[str, tuple[float, float, str]] = {}
    conditions: Mapping[str, Callable[..., Tensor]] = {}
    edges: Mapping[str, float] = {}
    separable: bool = True
    closed_form: bool = False
    power: float | None = None
    timed: bool = False
    count: int = 12

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "noises" not in cls.__dict__:
            cls.noises = {s: {s: 1.0} for s in cls.states}

    # -- the equation ----------------------------------------------------------------------------

    def variance(self, p, *state: Tensor) -> Tensor:
        """s^2, the instantaneous variance of the log price, 1/year.

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> garch.MODEL.variance(p, torch.tensor(0.04))
        tensor(0.0400)
        """
        raise NotImplementedError

    def covariances(self, p, *state: Tensor) -> Mapping[tuple[str, str], Terms]:
        """c_d for ("x", d) and v_de for (d, e): one entry for each of `pairs` but ("x", "x").

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> ((weight, power),) = garch.MODEL.covariances(p, torch.tensor(0.04))["x", "nu"]
        >>> weight * power  # rho sigma nu^1.5
        tensor(-0.0017, dtype=torch.float64)
        """
        raise NotImplementedError

    def drift(self, p, *state: Tensor) -> Mapping[str, Terms]:
        """m_i of every state, per year.

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> sum(f * g for f, g in garch.MODEL.drift(p, torch.tensor(0.09))["nu"])  # 2 (0.04 - 0.09)
        tensor(-0.1000, dtype=torch.float64)
        """
        raise NotImplementedError

    def expected_variance(self, p, tau, *state):
        """E of the integral of s^2 to maturity, the total variance of the Black-Scholes anchor.

        Arguments are tensors, or jets and then so is the result; see `jets.expm1` and its like.
        It need not be exact: what it misses the network learns.

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> garch.MODEL.expected_variance(p, torch.tensor(1.0), torch.tensor(0.09))
        tensor(0.0616, dtype=torch.float64)
        """
        raise NotImplementedError

    @property
    def pairs(self) -> Pairs:
        """The second derivatives that the equation names.

        >>> garch.MODEL.pairs
        (('x', 'x'), ('x', 'nu'), ('nu', 'nu'))
        """
        names = ["x", *self.noises]
        return tuple((a, b) for i, a in enumerate(names) for b in names[i:])

    # -- parameters ------------------------------------------------------------------------------

    def checked(self, p):
        """The parameters as tensors.

        >>> garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)).rho
        tensor(-0.7000, dtype=torch.float64)

        Raises
        ------
        ValueError
            One is not finite or outside its meaning.
        """
        values = tensors(**p._asdict())
        self.require(dict(zip(p._fields, values, strict=True)))
        return type(p)(*values)

    def require(self, values: Mapping[str, Tensor]) -> list[tuple[float, float]]:
        """Raise unless all values, by name, are finite and within their meaning; their extremes.

        >>> garch.MODEL.require({"kappa": torch.tensor([0.5, 2.0])})
        [(0.5, 2.0)]
        """
        found = extremes(list(values.values()))
        for (name, value), (lowest, highest) in zip(values.items(), found, strict=True):
            natural = NON_NEGATIVE if name == "tau" or name in self.states else FINITE
            low, high, words = self.meaning.get(name, natural)
            if not (low <= lowest and highest <= high and math.isfinite(highest)):
                require(torch.isfinite(value), name, value, "finite")
                require((value >= low) & (value <= high), name, value, words)
        return found

    def sample(
        self,
        n: int,
        domain: Domain | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype=torch.float64,
        device=None,
    ):
        """`n` parameter vectors of the domain under its condition, scrambled Sobol points.

        Rejection keeps the low discrepancy of the accepted points only roughly, yet exactly the
        uniform distribution on the part of the box that satisfies the condition.

        >>> garch.MODEL.sample(8).shape
        torch.Size([8])

        Raises
        ------
        ValueError
            `n` is not a positive integer, or the model has no such condition.
        """
        domain = self.domain if domain is None else domain
        require(isinstance(n, int) and n > 0, "n", n, "a positive integer")
        holds = self.condition(domain)
        names = self.Parameters._fields
        source = generator.device if generator is not None else "cpu"
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=source))
        sobol = torch.quasirandom.SobolEngine(len(names), scramble=True, seed=seed)
        kept = torch.empty(0, len(names), dtype=torch.float64, device="cpu")
        while len(kept) < n:
            units = sobol.draw(2 * n + 16, dtype=torch.float64).unbind(1)
            scaled = (domain.scale(name, u) for name, u in zip(names, units, strict=True))
            draw = torch.stack(list(scaled), 1)
            kept = torch.cat([kept, draw[holds(self.Parameters(*draw.T))]])
        return self.Parameters(*kept[:n].to(device=device, dtype=dtype).T)

    def condition(self, domain: Domain) -> Callable[..., Tensor]:
        """The domain's condition, a function of parameters; true everywhere if it names none.

        >>> feller = heston.MODEL.condition(heston.TABLE_I)
        >>> feller(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        tensor(True)
        """
        if not domain.where:
            return lambda p: torch.ones_like(p.stack()[..., 0], dtype=torch.bool)
        known = tuple(self.conditions)
        require(domain.where in known, "condition", repr(domain.where), f"one of {known}")
        return self.conditions[domain.where]

    def near_edge(self, p, u: Tensor, domain: Domain):
        """Parameters next to the edge of the condition, where the error is largest.

        `u` in [0, 1), of the shape of `p`, says how near. Without a condition there is no edge.
        """
        return p

    def closeness(self, p) -> Tensor:
        """How near the edge of the condition the parameters are, 1 on it.

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> garch.MODEL.closeness(p)  # no condition, no edge
        tensor(0.)
        """
        return torch.zeros(p.shape)

    def at_closeness(self, p, value: Tensor):
        """The parameters with their volatility of variance moved to where `closeness` is `value`.

        >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> heston.MODEL.at_closeness(p, torch.tensor(1.0)).sigma  # the Feller boundary
        tensor(0.4000, dtype=torch.float64)

        Raises
        ------
        NotImplementedError
            The model has no condition.
        """
        raise NotImplementedError(f"{self.name} has no condition")

    # -- what helps a network --------------------------------------------------------------------

    def features(self, p, *state: Jet, **time: Jet) -> list[Jet]:
        """States and parameters in units of order one, beside moneyness and total variance.

        >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> nu = Jet(torch.tensor(0.04), nu=1)
        >>> heston.MODEL.features(p, nu)[4].value  # 2 rho + 1
        tensor(-0.4000, dtype=torch.float64)
        """
        given = dict(zip(self.states, state, strict=True))
        found = [self._unit(name, y) for name, y in given.items()]
        for name, value in zip(p._fields[:-1], p, strict=False):  # the rate enters by the forward
            found.append(Jet(self._unit(name, value), pairs=state[0].pairs))
        return found

    def _unit(self, name: str, value):
        low, high = self.domain[name]
        return value * (2 / (high - low)) + -(high + low) / (high - low)

    def visited(
        self, p, domain: Domain, u: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """States to impose the equation at, from uniforms u (n,), one a state, and parameters (n,).

        By default their squares, scaled to the domain: dense where the variance is small. A model
        whose paths go elsewhere says where; it may draw more from the generator.

        >>> garch.MODEL.visited(None, Domain({"nu": (0.0, 1.0)}), [torch.tensor(0.5)])
        (tensor(0.2500),)
        """
        return tuple(domain.scale(s, v**2) for s, v in zip(self.states, u, strict=True))

    def smile(self, p) -> Tensor | float:
        """A factor to which the correction to Black-Scholes is proportional when it is small.

        >>> heston.MODEL.smile(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))  # sigma
        0.3
        """
        return 1.0

    def smile_moments(self, p, tau, y, *state):
        """`smile.Moments` at ln total variance `y`; tensors, or jets and then so is the result.

        >>> p = garch.MODEL.checked(garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> tau, nu = torch.tensor([1.0, 0.04], dtype=torch.float64)
        >>> garch.MODEL.smile_moments(p, tau, nu.log(), nu).spread  # of the integrated variance
        tensor(0.0086, dtype=torch.float64)

        Raises
        ------
        NotImplementedError
            The variance is not of that kind.
        """
        if self.power is None:
            raise NotImplementedError(f"{self.name} has no power: override smile_moments")
        (nu,) = state
        return smile.moments(p, tau, nu, y, self.power)

    def whole(self, state) -> tuple:
        """All states, from what a user gives: a model with hidden factors adds their start.

        >>> garch.MODEL.whole(0.04)
        (0.04,)
        """
        return as_states(state)

    # -- paths -----------------------------------------------------------------------------------

    def times(self, tau: Tensor, count: int) -> list[Tensor]:
        """The lengths of `count` steps that add up to `tau`: even, unless a model knows better.

        >>> garch.MODEL.times(torch.tensor(1.0), 2)
        [tensor(0.5000), tensor(0.5000)]
        """
        return [tau / count] * count

    def step(self, p, dt: Tensor, z: Tensor, *state: Tensor) -> Step:
        """The state after a time `dt`, given standard normals z (noises, ...).

        Euler's step, with the coefficients at max(state, 0) where a state may not be negative: of
        first weak order. A model that knows better overrides it.

        >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
        >>> dt = torch.tensor(0.5, dtype=torch.float64)
        >>> heston.MODEL.step(p, dt, torch.zeros(1), torch.tensor(0.09)).state  # 0.09 - 2 0.05 dt
        (tensor(0.0400, dtype=torch.float64),)
        """
        s2 = self.variance(p, *state)
        covariances = {k: _total(t) for k, t in self.covariances(p, *state).items()}
        names, nothing = list(self.noises), torch.zeros_like(s2)
        root: dict[tuple[int, int], Tensor] = {}
        moves: dict[str, Tensor] = {}
        price: list[Tensor] = []
        explained, martingale = nothing, nothing
        for i, a in enumerate(names):  # Cholesky, row by row; the price is the last row
            row = [covariances.get((b, a), covariances.get((a, b), 0.0)) for b in names[: i + 1]]
            for j in range(i):
                known = sum(root[i, k] * root[j, k] for k in range(j))
                root[i, j] = _over(row[j] - known, root[j, j])
            left = row[i] - sum(root[i, k] ** 2 for k in range(i))
            root[i, i] = torch.as_tensor(left).clamp_min(0).sqrt()
            moves[a] = sum(root[i, k] * z[k] for k in range(i + 1)) * dt.sqrt()
        for i, a in enumerate(names):
            shared = sum((price[k] * root[i, k] for k in range(i)), nothing)
            price.append(_over(covariances[("x", a)] - shared, root[i, i]))
            explained = explained + price[i] ** 2
            martingale = martingale + price[i] * z[i] * dt.sqrt()
        drift = {name: _total(t) for name, t in self.drift(p, *state).items()}
        after = []
        for name, y in zip(self.states, state, strict=True):
            noise = sum(w[name] * moves[d] for d, w in self.noises.items() if name in w)
            after.append(self.clamp(name, y + drift[name] * dt + noise))
        return Step(tuple(after), s2 * dt, martingale, (s2 - explained).clamp_min(0) * dt)

    def clamp(self, name: str, y: Tensor) -> Tensor:
        """The state kept where it has a meaning: by default not below zero.

        >>> heston.MODEL.clamp("nu", torch.tensor(-0.01))
        tensor(0.)
        """
        return y.clamp_min(0)

    # -- truth -----------------------------------------------------------------------------------

    def greeks(self, x, state, tau, p) -> Greeks:
        """Exact price and Greeks; only where `closed_form` says so.

        >>> p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
        >>> heston.MODEL.greeks(0.0, (0.04,), 1.0, p).delta
        tensor(0.6919, dtype=torch.float64)

        Raises
        ------
        NotImplementedError
            The model has no formula.
        """
        raise NotImplementedError(f"{self.name} has no formula: use paths.conditional_call")


def _total(terms: Terms):
    return sum(f * g for f, g in terms)


def _over(a, b: Tensor) -> Tensor:
    """a / b, and 0 where b vanishes: there is no such noise."""
    return torch.where(b > 0, a / b.clamp_min(1e-30), 0.0)


def mean_reverting(nu, tau, kappa: Tensor, theta: Tensor):
    r"""The integral of E[nu_s] under the linear drift kappa (theta - nu), for tensors and jets.

    .. math:: w(\nu, \tau) = \theta\tau + (\nu - \theta)\frac{1 - e^{-\kappa\tau}}{\kappa}

    >>> kappa, theta = torch.tensor([2.0, 0.04])
    >>> mean_reverting(torch.tensor([0.04, 0.09]), 1.0, kappa, theta)
    tensor([0.0400, 0.0616])
    """
    growth = jets.expm1(tau * -kappa) / -kappa
    return tau * theta + (nu + -theta) * growth


FINITE = (-math.inf, math.inf, "finite")
POSITIVE = (1e-30, math.inf, "positive")
NON_NEGATIVE = (0.0, math.inf, "non-negative")
CORRELATION = (-1.0, 1.0, "in [-1, 1]")

MODELS: dict[str, Model] = {}


def register(model: Model) -> Model:
    """Enter a model under its name, so that configurations and weights files find it."""
    MODELS[model.name] = model
    return model


def as_states(state) -> tuple:
    """A single state variable, tensor or jet, as the tuple of states that it is short for.

    >>> as_states(0.04), as_states((0.04, 0.09))
    ((0.04,), (0.04, 0.09))
    """
    return state if isinstance(state, tuple) else (state,)

r"""A basket of correlated Bachelier assets: closed forms, paths, pathwise derivatives.

.. math:: dF_t = \operatorname{diag}(\sigma)\,dW_t, \qquad
          d\langle W^j, W^k\rangle_t = \rho_{jk}\,dt, \qquad B_t = \sum_i \omega_i F_t^i

(Sobolev Pruning, eq. 7 and definition 5, whose sum runs over one asset too many). The basket is
itself a Bachelier asset, of volatility :math:`\sigma_B = \sqrt{a^\top\rho\,a}` with
:math:`a_i = \omega_i\sigma_i`, so every price below is closed-form in the basket's level, while a
network sees only the spots. Closed forms are computed on the device and in the dtype of the spots,
wherever the basket is.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require
from . import paths


class Greeks(NamedTuple):
    """Price and derivatives, per unit of spot; all (...) but `deltas`, which is (..., dim).

    `delta` and `gamma` move all assets together: sum of partials, and 1'H1.

    >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
    >>> asset.greeks(torch.tensor([100.0])).deltas
    tensor([0.5000])
    """

    price: Tensor
    delta: Tensor
    gamma: Tensor
    deltas: Tensor


class Sample(NamedTuple):
    """Spots (n, dim), one noisy payoff each (n,), its gradient (n, dim), its 1'H1 (n,).

    >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
    >>> [tuple(part.shape) for part in asset.sample(4)]
    [(4, 1), (4,), (4, 1), (4,)]
    """

    spots: Tensor
    payoff: Tensor
    deltas: Tensor
    gamma: Tensor


@dataclass(frozen=True, eq=False)
class Basket:
    """A European call on a basket of assets with jointly normal increments.

    >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
    >>> asset.call(torch.tensor([100.0]))  # at the money: 20/sqrt(2 pi)
    tensor(7.9788)

    Attributes
    ----------
    weights : (dim,), sum to one
    vols : (dim,), currency per square root of a year, positive and finite
    correlation : (dim, dim), symmetric, positive definite, unit diagonal
    strike, maturity : of the call; currency, years
    centre, spread : training spots are `centre` plus `spread` times the increments over the
        maturity, so they cover the wings

    Raises
    ------
    ValueError
        An attribute outside its meaning.
    """

    weights: Tensor
    vols: Tensor
    correlation: Tensor
    strike: float = 110.0
    maturity: float = 1.0
    centre: float = 100.0
    spread: float = 1.5

    def __post_init__(self):
        w, v, c = self.weights, self.vols, self.correlation
        require(w.ndim == 1 and len(w) > 0, "weights", w, "of shape (dim,)")
        require(v.shape == w.shape, "vols", v, f"of shape {tuple(w.shape)}")
        require(c.shape == (len(w), len(w)), "correlation", c, f"of shape {(len(w), len(w))}")
        loose = 1e-3 if w.dtype == torch.float32 else 1e-9
        require((w.sum() - 1).abs() < loose, "weights", float(w.sum()), "of sum one")
        require((v > 0) & v.isfinite(), "vols", v, "positive and finite")
        require((c - c.T).abs() < loose, "correlation", c, "symmetric")
        require((c.diagonal() - 1).abs() < loose, "correlation diagonal", c.diagonal(), "one")
        _, info = torch.linalg.cholesky_ex(c)
        require(info == 0, "correlation", "a matrix that is not", "positive definite")
        for name in ("strike", "maturity", "centre", "spread"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "finite")
        require(self.maturity > 0, "maturity", self.maturity, "positive")
        require(self.spread > 0, "spread", self.spread, "positive")
        sigma = self.volatility  # of wild entries it may overflow, or vanish
        require((sigma > 0) & sigma.isfinite(), "basket's volatility", sigma, "positive and finite")

    @classmethod
    def random(cls, dim: int = 7, seed: int = 0, volatility: float = 20.0, **settings) -> "Basket":
        """A random basket in float64, the same for a seed on every machine.

        Weights are uniform on [1, 10], normalised; volatilities uniform on [5, 50], scaled to the
        basket's `volatility`; the correlation is that of a (2 dim, dim) uniform matrix on [-1, 1]
        (the recipe of Huge and Savine). `settings` go to the constructor. Raises ValueError for a
        `dim` or a `volatility` that is not positive.

        >>> Basket.random(dim=7, volatility=20.0).volatility
        tensor(20., dtype=torch.float64)
        """
        require(isinstance(dim, int) and dim > 0, "dim", dim, "a positive integer")
        require(volatility > 0, "volatility", volatility, "positive")
        generator = torch.Generator().manual_seed(seed)

        def uniform(low, high, *shape):
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        factors = uniform(-1, 1, 2 * dim, dim)
        factors = factors / factors.norm(dim=0)
        correlation = factors.T @ factors
        correlation = (correlation + correlation.T) / 2
        correlation.fill_diagonal_(1.0)
        weights = uniform(1, 10, dim)
        weights = weights / weights.sum()
        vols = uniform(5, 50, dim)
        exposure = weights * vols
        vols = vols * volatility / (exposure @ correlation @ exposure).sqrt()
        return cls(weights, vols, correlation, **settings)

    def to(self, device=None, dtype=None) -> "Basket":
        """The same basket on another device or in another dtype.

        >>> Basket.random().to(dtype=torch.float32).weights.dtype
        torch.float32
        """
        tensors = ("weights", "vols", "correlation")
        moved = {k: getattr(self, k).to(device=device, dtype=dtype) for k in tensors}
        return replace(self, **moved)

    @property
    def dim(self) -> int:
        """Number of assets."""
        return len(self.weights)

    @cached_property
    def volatility(self) -> Tensor:
        """Volatility of the basket's level, currency per square root of a year, scalar.

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.volatility  # sqrt(15^2 + 20^2)
        tensor(25.)
        """
        exposure = self.weights * self.vols
        return (exposure @ self.correlation @ exposure).sqrt()

    @cached_property
    def factor(self) -> Tensor:
        """Lower triangular L with L L' = covariance of the increments over the maturity.

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.factor
        tensor([[30.,  0.],
                [ 0., 40.]])
        """
        deviations = self.vols * math.sqrt(self.maturity)
        return deviations[:, None] * torch.linalg.cholesky(self.correlation)

    def level(self, spots: Tensor) -> Tensor:
        """The basket's level, (..., dim) -> (...); ValueError for another number of assets.

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.level(torch.tensor([90.0, 110.0]))
        tensor(100.)
        """
        (spots,) = floating(spots=spots)
        if spots.shape[-1:] != self.weights.shape:
            raise ValueError(f"spots must be of shape (..., {self.dim}), got {tuple(spots.shape)}")
        return spots @ self.weights.to(spots)

    # Closed forms

    def _moneyness(self, spots: Tensor) -> tuple[Tensor, Tensor]:
        """Deviations between level and strike (...), and one deviation (), in currency."""
        level = self.level(spots)
        deviation = self.volatility.to(level) * math.sqrt(self.maturity)
        return (level - self.strike) / deviation, deviation

    def call(self, spots: Tensor) -> Tensor:
        """Price of the call, (..., dim) -> (...); Sobolev Pruning, eq. 6.

        >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
        >>> asset.call(torch.tensor([[100.0], [200.0]]))  # the second is deep in the money
        tensor([  7.9788, 100.0000])
        """
        z, deviation = self._moneyness(spots)
        return deviation * _ramp(z).value

    def greeks(self, spots: Tensor) -> Greeks:
        r"""Price, Delta :math:`\Phi(z)` (eq. 8) and Gamma :math:`\varphi(z)/(\sigma_B\sqrt T)`.

        >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
        >>> asset.greeks(torch.tensor([100.0])).gamma  # 1/(20 sqrt(2 pi))
        tensor(0.0199)
        """
        z, deviation = self._moneyness(spots)
        price, delta, density = _ramp(z)
        deltas = delta[..., None] * self.weights.to(delta)
        return Greeks(deviation * price, delta, density / deviation, deltas)

    def digital(self, spots: Tensor) -> Tensor:
        """Price of one unit of cash if the basket ends above the strike, (..., dim) -> (...).

        >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
        >>> asset.digital(torch.tensor([100.0]))
        tensor(0.5000)
        """
        return torch.special.ndtr(self._moneyness(spots)[0])

    def up_and_out(self, spots: Tensor, barrier: float) -> Tensor:
        r"""Price of the call that dies when the basket touches `barrier`, (..., dim) -> (...).

        By reflection, g(B_0) - g(2 H - B_0), with g the price of the payoff cut at the barrier H.
        Written out it is a static hedge, with C and D the prices of a call and a digital:

        .. math:: C(K) - C(2H - K) - 2 (H - K)\,D(H),

        in which no large numbers cancel, however far the barrier; ``math.inf`` is the plain call.

        >>> asset = Basket(torch.ones(1), torch.tensor([20.0]), torch.ones(1, 1), strike=100.0)
        >>> asset.up_and_out(torch.tensor([[100.0], [120.0]]), 120.0)
        tensor([1.4628, 0.0000])

        Raises
        ------
        ValueError
            A barrier at or below the strike, or NaN.
        """
        require(barrier > self.strike, "barrier", barrier, f"above the strike {self.strike}")
        mirror = 2 * (barrier - self.strike)
        if math.isinf(mirror):
            return self.call(spots)
        z, deviation = self._moneyness(spots)
        calls = _ramp(z).value - _ramp(z - mirror / deviation).value
        at_barrier = z - (barrier - self.strike) / deviation
        price = deviation * calls - mirror * torch.special.ndtr(at_barrier)
        return torch.where(at_barrier < 0, price, 0.0)

    # Paths

    def _noise(self, n, dim, scheme, generator):
        """Normals on the basket's device; a generator elsewhere draws where it is."""
        where = self.weights.device if generator is None else generator.device
        dtype = self.weights.dtype
        drawn = paths.normals(n, dim, scheme=scheme, generator=generator, dtype=dtype, device=where)
        return drawn.to(self.weights.device)

    def spots(self, n: int, *, scheme="plain", generator=None) -> Tensor:
        """Training inputs (n, dim): `centre` + `spread` * correlated normal increments.

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.spots(5).shape
        torch.Size([5, 2])
        """
        noise = self._noise(n, self.dim, scheme, generator)
        return self.centre + self.spread * (noise @ self.factor.T)

    def paths(self, spots: Tensor, steps: int = 1, *, scheme="plain", generator=None) -> Tensor:
        """Exact paths from `spots` (n, dim) at `steps` equal times: (n, steps + 1, dim).

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.paths(torch.full((5, 2), 100.0), steps=3).shape
        torch.Size([5, 4, 2])
        """
        require(isinstance(steps, int) and steps > 0, "steps", steps, "a positive integer")
        n = len(self.level(spots))
        noise = self._noise(n, steps * self.dim, scheme, generator).view(n, steps, self.dim)
        walk = (noise @ self.factor.T).cumsum(1) / math.sqrt(steps)
        return torch.cat([spots[:, None], spots[:, None] + walk.to(spots)], dim=1)

    def sample(
        self, n: int, *, scheme="plain", width: float = 0.0, kind="sigmoid", generator=None
    ) -> Sample:
        r"""Training samples: one path a spot, its payoff and pathwise derivatives by hand.

        With :math:`v_w` the payoff smoothed over `width` (`paths.ramp`), the gradient is
        :math:`v_w'(B_T - K)\,\omega`, the Hessian :math:`v_w''(B_T - K)\,\omega\omega^\top`. The
        payoff itself (``width=0``) has gradient :math:`1_{B_T > K}\,\omega` and a worthless zero
        for a Hessian.

        >>> basket = Basket(torch.full((2,), 0.5), torch.tensor([30.0, 40.0]), torch.eye(2))
        >>> basket.sample(4).deltas.shape
        torch.Size([4, 2])

        Parameters
        ----------
        scheme : "plain"; "antithetic", each label the mean over a path and its mirror image;
            "sobol", spots and path from one scrambled sequence in 2 dim dimensions.
        width, kind : of the smoothing, as in `paths.ramp`; currency

        Raises
        ------
        ValueError
            `n`, `scheme`, `width` or `kind` outside the above.
        """
        require(scheme in paths.SCHEMES, "scheme", scheme, f"one of {', '.join(paths.SCHEMES)}")
        noise = self._noise(n, 2 * self.dim, "sobol" if scheme == "sobol" else "plain", generator)
        spots = self.centre + self.spread * (noise[:, : self.dim] @ self.factor.T)
        move = noise[:, self.dim :] @ (self.weights @ self.factor)
        start = spots @ self.weights - self.strike
        payoff, slope, curvature = paths.ramp(start + move, width, kind)
        if scheme == "antithetic":
            mirror = paths.ramp(start - move, width, kind)
            payoff, slope, curvature = (
                (a + b) / 2 for a, b in zip((payoff, slope, curvature), mirror, strict=True)
            )
        return Sample(spots, payoff, slope[:, None] * self.weights, curvature)


def _ramp(z: Tensor) -> paths.Ramp:
    r"""z Phi(z) + phi(z), Phi(z), phi(z): never negative, and zero at minus infinity.

    Beyond 40 deviations below nothing is left in float64, and -inf * 0 would be NaN.
    """
    value, slope, curvature = paths.ramp(z.clamp(min=-40.0), 1.0, "gaussian")
    return paths.Ramp(value.clamp(min=0.0), slope, curvature)

r"""The Heston model: parameters, Table I, semi-analytic price and Greeks.

.. math:: dS = r S\,dt + \sqrt\nu S\,dW^S, \qquad
          d\nu = \kappa(\theta - \nu)\,dt + \sigma\sqrt\nu\,dW^\nu, \qquad
          d\langle W^S, W^\nu\rangle = \rho\,dt

(DeepSVM, eqs. 1 and 2). Prices are normalised, u = V/K, and x = ln(S/K), tau = T - t in years.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ._validate import floating, require

TABLE_I = {
    "kappa": (0.5, 3.0),
    "theta": (0.01, 0.20),
    "sigma": (0.1, 1.0),
    "rho": (-0.95, -0.05),
    "r": (0.00, 0.08),
    "x": (-2.0, 2.0),
    "nu": (0.01, 0.40),
    "tau": (0.0, 1.0),
}
"""Ranges of DeepSVM's Table I: five model parameters, three domain coordinates."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Heston parameters, floats or tensors that broadcast against each other.

    Attributes
    ----------
    kappa : speed of mean reversion, 1/year, > 0
    theta : long-run variance, 1/year, >= 0
    sigma : volatility of variance, 1/year, >= 0
    rho : correlation of spot and variance, in [-1, 1]
    r : risk-free rate, continuously compounded, 1/year

    Raises
    ------
    ValueError
        A parameter outside its meaning, not finite, or shapes that do not broadcast.
    """

    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor
    r: Tensor

    def __post_init__(self):
        values = floating(**{f.name: getattr(self, f.name) for f in fields(self)})
        for field, value in zip(fields(self), values, strict=True):
            require(torch.isfinite(value), field.name, value, "finite")
            object.__setattr__(self, field.name, value)
        require(self.kappa > 0, "kappa", self.kappa, "positive")
        require(self.theta >= 0, "theta", self.theta, "non-negative")
        require(self.sigma >= 0, "sigma", self.sigma, "non-negative")
        require(self.rho.abs() <= 1, "rho", self.rho, "in [-1, 1]")

    def __iter__(self):
        return iter((self.kappa, self.theta, self.sigma, self.rho, self.r))

    def __getitem__(self, index) -> "Parameters":
        """The same index into all five tensors, e.g. ``p[:, None]``."""
        return Parameters(*(value[index] for value in self))

    @property
    def shape(self) -> torch.Size:
        return self.kappa.shape

    def stack(self) -> Tensor:
        """The parameters as one tensor (..., 5), in the order of Table I."""
        return torch.stack(tuple(self), dim=-1)


def satisfies_feller(p: Parameters) -> Tensor:
    """Whether 2 kappa theta > sigma^2: the variance never reaches zero. Boolean, shape of `p`."""
    return 2 * p.kappa * p.theta > p.sigma**2


def sample_parameters(
    n: int, *, generator: torch.Generator | None = None, dtype=torch.float64, device=None
) -> Parameters:
    """`n` parameter vectors of Table I under the Feller condition, scrambled Sobol points.

    Rejection keeps the low discrepancy of the accepted points only roughly, yet exactly the
    uniform distribution on the Feller part of the box (51.7 % of it).

    Raises
    ------
    ValueError
        `n` is not a positive integer.
    """
    require(isinstance(n, int) and n > 0, "n", n, "a positive integer")
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    sobol = torch.quasirandom.SobolEngine(5, scramble=True, seed=seed)
    low, high = torch.tensor([TABLE_I[k] for k in ("kappa", "theta", "sigma", "rho", "r")],
                             dtype=torch.float64).T
    kept = torch.empty(0, 5, dtype=torch.float64)
    while len(kept) < n:
        draw = low + (high - low) * sobol.draw(2 * n + 16, dtype=torch.float64)
        kept = torch.cat([kept, draw[satisfies_feller(Parameters(*draw.T))]])
    return Parameters(*kept[:n].to(device=device, dtype=dtype).T)

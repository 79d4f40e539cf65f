r"""Heston's prices of one market's options, with derivatives in all parameters: for calibration.

Options of one maturity share the characteristic function, and its derivatives in the parameters are
closed forms (Cui, del Bano Rollin and Germano, 2017, "Full and fast calibration of the Heston
stochastic volatility model"): a surface of a hundred options costs as many evaluations as it has
maturities. The integral is Lewis', as in `heston.call`, with a Black-Scholes control variate of
a *fixed* variance, which needs no derivative.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .._validate import floating, require
from . import black_scholes

_NODES = 96
_FAR = 40.0  # the last node, in units of 1/sqrt(w)
_CHUNK = 32  # parameter vectors at a time: complex temporaries stay in the cache


class HestonSurface:
    """Prices and derivatives for n fixed options, for B parameter vectors at once.

    Parameters
    ----------
    x, tau, r : log-moneyness, years > 0, rate; (n,), or numbers
    volatility : a rough one, 1/sqrt(year), that sets the scale of the nodes: (n,) or a number
    nodes : of the integral of each maturity

    Raises
    ------
    ValueError
        No time left, no volatility, fewer than 8 nodes.

    >>> surface = HestonSurface(torch.tensor([0.0, 0.1]), 1.0, 0.05, 0.2)
    >>> z = torch.tensor([[0.04, 2.0, 0.04, 0.3, -0.7]])  # nu, kappa, theta, sigma, rho
    >>> price, derivatives = surface(z)
    >>> price.shape, derivatives.shape, round(price[0, 0].item(), 6)
    (torch.Size([1, 2]), torch.Size([1, 2, 5]), 0.103942)
    """

    def __init__(self, x, tau, r, volatility=0.2, nodes: int = _NODES):
        x, tau, r, volatility = (v.double() for v in floating(x=x, tau=tau, r=r, vol=volatility))
        require((tau > 0) & torch.isfinite(tau), "tau", tau, "positive and finite")
        require((volatility > 0), "volatility", volatility, "positive")
        require(nodes >= 8, "nodes", nodes, "at least 8")
        self.tau, which = tau.unique(return_inverse=True)
        own = which[:, None] == torch.arange(len(self.tau), device=x.device)
        w = (own * (volatility**2 * tau)[:, None]).sum(0) / own.sum(0)  # mean of each maturity
        # u = sinh(t)/(2 sqrt(w)): dense where the integrand turns, sparse where it has decayed
        t, weight = (torch.as_tensor(v).to(x) for v in _legendre(nodes))
        last = math.asinh(2 * _FAR)
        scale = (0.5 / w.sqrt())[:, None]
        self.u = scale * torch.sinh(last * t)  # (maturities, nodes)
        self.q = self.u**2 + 0.25
        size = scale * torch.cosh(last * t) * last * weight / (math.pi * self.q)
        k, discount = x + r * tau, torch.exp(-r * tau)
        self.anchor = black_scholes.value(k, w[which]) * discount
        self.known = torch.exp(-0.5 * w[:, None] * self.q)  # the control variate's
        phase = torch.exp(k[:, None] * (0.5 + 1j * self.u[which])) * size[which]
        phase = -discount[:, None] * phase
        rank = (own.cumsum(0) - 1).gather(1, which[:, None]).squeeze(1)  # within its maturity
        self.place = which, rank
        # Re(a b) as a real product; maturities with fewer options are filled up with zeros
        self.kernel = phase.real.new_zeros(len(self.tau), int(rank.max()) + 1, 2 * nodes)
        self.kernel[self.place] = torch.cat([phase.real, -phase.imag], -1)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Prices (B, n) and derivatives (B, n, 5) at z (B, 5): nu, kappa, theta, sigma, rho."""
        found = torch.cat([self._channels(*part.double().T) for part in z.split(_CHUNK)], 2)
        found = found[self.place].movedim(0, 1)
        return self.anchor + found[..., 0], found[..., 1:]

    def _channels(self, nu, kappa, theta, sigma, rho) -> Tensor:
        """Price less its anchor and five derivatives, (maturities, options of each, B, 6)."""
        phi, log = self._characteristic(nu, kappa, theta, sigma, rho)
        c = torch.stack([phi - self.known[..., None], *(phi * v for v in log)], -1)
        c = torch.cat([c.real, c.imag], 1)  # (maturities, 2 nodes, B, 6)
        return (self.kernel @ c.flatten(2)).unflatten(2, (-1, 6))

    def _characteristic(self, nu, kappa, theta, sigma, rho) -> tuple[Tensor, list[Tensor]]:
        """phi(u - i/2) and the derivatives of its logarithm C + D nu: (maturities, nodes, B).

        C = kappa theta G, and G and D depend on b = kappa - rho sigma (iu + 1/2) and s = sigma^2
        alone: two derivatives each make all five.
        """
        q, tau, iu = self.q[..., None], self.tau[:, None, None], 0.5 + 1j * self.u[..., None]
        s = sigma**2
        b = kappa - rho * sigma * iu
        d = torch.sqrt(b * b + s * q)
        e = torch.exp(-d * tau)
        over_d, over, fall = 1 / d, 1 / (b + d), q * (1 - e)  # products are faster than quotients
        over_m = 1 / (b + d + (d - b) * e)
        big_d = -fall * over_m
        z_s = -0.5 * fall * over * over_d  # z/s
        over_z = 1 / (1 + s * z_s)
        log = -torch.log(over_z)
        g = -(q * tau * over + 2 / s * log)

        def vary(db, dd, ds):  # the same direction for everything that b and s move
            de = -tau * e * dd
            d_big_d = (q * de - big_d * (db * (1 - e) + dd * (1 + e) + (d - b) * de)) * over_m
            dz = ds * z_s + s * (
                0.5 * over * over_d * q * de - z_s * (dd * over_d + (db + dd) * over)
            )
            dg = q * tau * (db + dd) * over * over - 2 / s * (dz * over_z - ds / s * log)
            return kappa * theta * dg + d_big_d * nu

        of_b, of_s = vary(1.0, b * over_d, 0.0), vary(0.0, 0.5 * q * over_d, 1.0)
        derivatives = [
            big_d,
            theta * g + of_b,
            kappa * g,
            -rho * iu * of_b + 2 * sigma * of_s,
            -sigma * iu * of_b,
        ]
        return torch.exp(kappa * theta * g + big_d * nu), derivatives


def _legendre(nodes: int):
    t, weight = np.polynomial.legendre.leggauss(nodes)
    return 0.5 * (t + 1), 0.5 * weight

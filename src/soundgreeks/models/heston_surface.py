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
        self.rows = [(which == i).nonzero().squeeze(1) for i in range(len(self.tau))]
        w = torch.stack([(volatility**2 * tau)[rows].mean() for rows in self.rows])
        # u = sinh(t)/(2 sqrt(w)): dense where the integrand turns, sparse where it has decayed
        t, weight = (torch.as_tensor(v).to(x) for v in _legendre(nodes))
        last = math.asinh(2 * _FAR)
        t, weight = last * t, last * weight
        scale = (0.5 / w.sqrt())[:, None]
        self.u = scale * torch.sinh(t)
        self.q = self.u**2 + 0.25
        k, discount = x + r * tau, torch.exp(-r * tau)
        self.anchor = black_scholes.value(k, w[which]) * discount
        self.known = torch.exp(-0.5 * w[:, None] * self.q)  # of the control variate
        self.kernel = []  # (options of a maturity, nodes), complex
        for i, rows in enumerate(self.rows):
            size = scale[i] * torch.cosh(t) * weight / (math.pi * self.q[i])
            phase = torch.exp(k[rows, None] * (0.5 + 1j * self.u[i])) * size
            self.kernel.append(-discount[rows, None] * phase)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Prices (B, n) and derivatives (B, n, 5) at z (B, 5): nu, kappa, theta, sigma, rho."""
        nu, kappa, theta, sigma, rho = z.double()[:, :, None, None].unbind(1)
        phi, log = self._characteristic(nu, kappa, theta, sigma, rho)
        channels = torch.stack([phi - self.known, *(phi * v for v in log)], -1)  # (B, T, nodes, 6)
        out = z.new_empty(len(z), len(self.anchor), 6, dtype=torch.float64)
        for i, rows in enumerate(self.rows):
            # Re(a b) = Re a Re b - Im a Im b, two real products in place of a complex one
            c, kernel = channels[:, i], self.kernel[i]
            out[:, rows] = kernel.real @ c.real - kernel.imag @ c.imag
        return self.anchor + out[..., 0], out[..., 1:]

    def _characteristic(self, nu, kappa, theta, sigma, rho) -> tuple[Tensor, list[Tensor]]:
        """phi(u - i/2) and the derivatives of its logarithm C + D nu: (B, maturities, nodes).

        C = kappa theta G, and G and D depend on b = kappa - rho sigma (iu + 1/2) and s = sigma^2
        alone: two derivatives each make all five.
        """
        q, tau, iu = self.q, self.tau[:, None], 0.5 + 1j * self.u
        s = sigma**2
        b = kappa - rho * sigma * iu
        d = torch.sqrt(b * b + s * q)
        e = torch.exp(-d * tau)
        m = b + d + (d - b) * e
        fall = q * (1 - e)
        big_d = -fall / m
        ratio = 1 / (2 * d * (b + d))
        z = -s * fall * ratio
        log = torch.log(1 + z)
        g = -(q * tau / (b + d) + 2 / s * log)

        def vary(db, dd, ds):  # the same direction for everything that b and s move
            de = -tau * e * dd
            d_big_d = (q * de - big_d * (db * (1 - e) + dd * (1 + e) + (d - b) * de)) / m
            dz = -ratio * (ds * fall - s * q * de) - z * (dd / d + (db + dd) / (b + d))
            dg = q * tau * (db + dd) / (b + d) ** 2 - 2 / s * (dz / (1 + z) - ds * log / s)
            return kappa * theta * dg + d_big_d * nu

        of_b, of_s = vary(1.0, b / d, 0.0), vary(0.0, q / (2 * d), 1.0)
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

r"""The pricing equation on a jet, for any stochastic-volatility model, and the losses of III.C.

.. math:: dS = r S\,dt + s(\nu) S\,dW, \quad d\nu = m(\nu)\,dt + v(\nu)\,dW', \quad
          d\langle W, W'\rangle = \rho\,dt

gives u_tau - N[u] = 0 with

.. math:: N[u] = (r - s^2/2) u_x + \tfrac12 s^2 u_{xx} + \rho s v\,u_{x\nu}
                 + \tfrac12 v^2 u_{\nu\nu} + m\,u_\nu - r u ,

which for s^2 = nu, v^2 = sigma^2 nu and m = kappa (theta - nu) is DeepSVM's eq. 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import jets
from .ansatz import anchor, plain_features
from .heston import Parameters
from .jets import Jet
from .networks import DeepONet

Terms = Sequence[tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class StochasticVolatility:
    """A model given by its four coefficients, each a sum of products f(parameters) g(nu).

    Attributes
    ----------
    variance : s^2, of the log price
    covariance : rho s v, of log price and variance
    variance_of_variance : v^2
    drift : m, of the variance

    Each is a function of (nu, p) that returns its products as pairs (f, g). Written so, the
    residual of a linear ansatz is one matrix product (`bilinear_residual`); nothing else asks
    for the factors apart.
    """

    variance: Callable[[Tensor, Parameters], Terms]
    covariance: Callable[[Tensor, Parameters], Terms]
    variance_of_variance: Callable[[Tensor, Parameters], Terms]
    drift: Callable[[Tensor, Parameters], Terms]


HESTON = StochasticVolatility(
    variance=lambda nu, p: [(1.0, nu)],
    covariance=lambda nu, p: [(p.rho * p.sigma, nu)],
    variance_of_variance=lambda nu, p: [(p.sigma**2, nu)],
    drift=lambda nu, p: [(p.kappa * p.theta, 1.0), (-p.kappa, nu)],
)

GARCH = StochasticVolatility(
    variance=lambda nu, p: [(1.0, nu)],
    covariance=lambda nu, p: [(p.rho * p.sigma, nu**1.5)],
    variance_of_variance=lambda nu, p: [(p.sigma**2, nu**2)],
    drift=lambda nu, p: [(p.kappa * p.theta, 1.0), (-p.kappa, nu)],
)
"""The GARCH diffusion dnu = kappa (theta - nu) dt + sigma nu dW': no closed-form price."""


def residual(u: Jet, nu: Tensor, p: Parameters, model: StochasticVolatility = HESTON) -> Tensor:
    """u_tau - N[u] (eq. 5): the shape of the jet's channels; zero for the true price."""
    half = 0.5 * u.nunu
    total = u.tau - p.r * (u.x - u.value)
    for terms, channel in (
        (model.variance(nu, p), 0.5 * (u.xx - u.x)),
        (model.covariance(nu, p), u.xnu),
        (model.variance_of_variance(nu, p), half),
        (model.drift(nu, p), u.nu),
    ):
        total = total - sum(f * g for f, g in terms) * channel
    return total


def bilinear_residual(
    network: DeepONet,
    x: Tensor,
    nu: Tensor,
    tau: Tensor,
    p: Parameters,
    *,
    features=plain_features,
    model: StochasticVolatility = HESTON,
    fixed: Tensor | None = None,
) -> Tensor:
    r"""The residual of u = A + tau <b, t> (the `anchor`) as one matrix product.

    With T = tau t, the residual is R[A] + sum_j f_j(mu) <b(mu), g_j(nu) D_j T>, where (f_j, g_j)
    run over the products in the model's coefficients and D_j is a derivative: the M x P
    residuals are an (M, J p) by (J p, P) product, and no M x P array of derivatives exists.

    Parameters
    ----------
    x, nu, tau : (P,)
    p : parameters of shape (M, 1)
    fixed : R[A], if known from before: it does not depend on the network

    Returns
    -------
    Tensor (M, P)
    """
    coordinates = jets.coordinates(x, nu, tau)
    b, h, constant = network.split(p.stack(), features(*coordinates))
    b, h = b[:, 0], Jet(*h.unbind(0))  # (M, width), channels of (P, width)
    time = tau[:, None]
    blocks = {
        1.0: (1.0, torch.addcmul(h.value, time, h.tau)),
        id(p.r): (p.r, time * (h.value - h.x)),
    }
    for terms, scale, channel in (
        (model.variance(nu, p), 0.5, h.x - h.xx),
        (model.covariance(nu, p), -1.0, h.xnu),
        (model.variance_of_variance(nu, p), -0.5, h.nunu),
        (model.drift(nu, p), -1.0, h.nu),
    ):
        for f, g in terms:  # products that share their factor f share a block of columns
            column = (scale * tau * g)[:, None] * channel
            key = f if isinstance(f, float) else id(f)
            blocks[key] = (f, blocks[key][1] + column if key in blocks else column)
    # The constant of N, a function of the parameters alone, gives (1 + r tau) <b, c>.
    left = torch.cat([*(f * b for f, _ in blocks.values()), constant, p.r * constant], dim=1)
    one = torch.ones_like(tau)[:, None]
    right = torch.cat([*(column for _, column in blocks.values()), one, tau[:, None]], dim=1)
    if fixed is None:
        fixed = anchor_residual(x, nu, tau, p, model=model)
    return torch.addmm(fixed, left, right.T)


def anchor_residual(
    x: Tensor, nu: Tensor, tau: Tensor, p: Parameters, *, model: StochasticVolatility = HESTON
) -> Tensor:
    """R[A] of the Black-Scholes anchor, the shape that the arguments broadcast to."""
    nothing = Jet(torch.zeros((), dtype=x.dtype, device=x.device))
    return residual(anchor(nothing, *jets.coordinates(x, nu, tau), p), nu, p, model)


def physics_loss(r: Tensor, lambda_max: float = 0.1) -> Tensor:
    """E[R^2] + lambda_max E[R^4] (eq. 12, with R taken pointwise)."""
    squared = r * r
    return squared.mean() + lambda_max * (squared * squared).mean()


def boundary_loss(u: Tensor, x: Tensor, tau: Tensor, r: Tensor) -> Tensor:
    """Mean squared error against eqs. 7 and 8: e^x - e^{-r tau} where x > 0, 0 where x < 0."""
    target = (torch.exp(x) - torch.exp(-r * tau)) * (x > 0)
    return ((u - target) ** 2).mean()

r"""The pricing equation on a jet, for any stochastic-volatility model, and the losses of III.C.

.. math:: dS = r S\,dt + s(\nu) S\,dW, \quad d\nu = m(\nu)\,dt + v(\nu)\,dW', \quad
          d\langle W, W'\rangle = \rho\,dt

gives u_tau - N[u] = 0 with

.. math:: N[u] = (r - s^2/2) u_x + \tfrac12 s^2 u_{xx} + \rho s v\,u_{x\nu}
                 + \tfrac12 v^2 u_{\nu\nu} + m\,u_\nu - r u ,

which for s^2 = nu, v^2 = sigma^2 nu and m = kappa (theta - nu) is DeepSVM's eq. 5.

Three of the seven derivatives occur only together, as -s^2/2 L[u] with

.. math:: L[u] = u_{xx} - u_x - \frac{2}{s^2} u_\tau ,

and L obeys the chain and product rules of u_xx, because it differs from it by first derivatives
alone. So a jet on `coordinates` carries L in its channel xx and none in tau: six channels do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from ..models.heston import Parameters
from .ansatz import anchor, plain_features
from .networks import DeepONet

Terms = Sequence[tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class StochasticVolatility:
    """A model given by its four coefficients.

    Attributes
    ----------
    variance : s^2, of the log price, a function of nu
    covariance : rho s v, of log price and variance
    variance_of_variance : v^2
    drift : m, of the variance

    The last three are functions of (nu, p) that return a sum of products f(parameters) g(nu) as
    pairs (f, g). Written so, the residual of a linear ansatz is a matrix product
    (`bilinear_residual`); nothing else asks for the factors apart.
    """

    variance: Callable[[Tensor], Tensor]
    covariance: Callable[[Tensor, Parameters], Terms]
    variance_of_variance: Callable[[Tensor, Parameters], Terms]
    drift: Callable[[Tensor, Parameters], Terms]


HESTON = StochasticVolatility(
    variance=lambda nu: nu,
    covariance=lambda nu, p: [(p.rho * p.sigma, nu)],
    variance_of_variance=lambda nu, p: [(p.sigma**2, nu)],
    drift=lambda nu, p: [(p.kappa * p.theta, 1.0), (-p.kappa, nu)],
)

GARCH = StochasticVolatility(
    variance=lambda nu: nu,
    covariance=lambda nu, p: [(p.rho * p.sigma, nu**1.5)],
    variance_of_variance=lambda nu, p: [(p.sigma**2, nu**2)],
    drift=lambda nu, p: [(p.kappa * p.theta, 1.0), (-p.kappa, nu)],
)
"""The GARCH diffusion dnu = kappa (theta - nu) dt + sigma nu dW': no closed-form price."""


def residual(u: Jet, nu: Tensor, p: Parameters, model: StochasticVolatility = HESTON) -> Tensor:
    """u_tau - N[u] (eq. 5): the shape of the jet's channels; zero for the true price."""
    total = u.tau - 0.5 * model.variance(nu) * (u.xx - u.x)
    return total - _rest(u, nu, p, model)


def _rest(u: Jet, nu: Tensor, p: Parameters, model: StochasticVolatility) -> Tensor:
    """r (u_x - u) + rho s v u_xnu + v^2/2 u_nunu + m u_nu."""
    total = p.r * (u.x - u.value)
    for terms, channel in (
        (model.covariance(nu, p), u.xnu),
        (model.variance_of_variance(nu, p), 0.5 * u.nunu),
        (model.drift(nu, p), u.nu),
    ):
        total = total + sum(f * g for f, g in terms) * channel
    return total


def coordinates(x: Tensor, nu: Tensor, tau: Tensor, model: StochasticVolatility = HESTON):
    """(x, nu, tau) as three jets whose channel xx is L of them, for `short_residual`."""
    return Jet(x, x=1, xx=-1), Jet(nu, nu=1), Jet(tau, xx=-2 / _variance(nu, model))


def short_residual(
    u: Jet, nu: Tensor, p: Parameters, model: StochasticVolatility = HESTON
) -> Tensor:
    """`residual` of a jet on `coordinates`: the same to rounding, from six channels."""
    return -0.5 * _variance(nu, model) * u.xx - _rest(u, nu, p, model)


def _variance(nu: Tensor, model: StochasticVolatility) -> Tensor:
    return model.variance(nu).clamp_min(1e-12)  # L divides by it


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
    r"""The residual of u = A + tau <b, t> (the `anchor`) as a matrix product.

    With T = tau t, the residual is R[A] + sum_j f_j(mu) <b(mu), g_j(nu) D_j T>, where (f_j, g_j)
    run over the products in the model's coefficients and D_j is a derivative (or L): the M x P
    residuals are an (M, J p) by (J p, P) product, and no M x P array of derivatives exists.
    Where several products share a derivative, as in the drift, their sum is formed first and
    multiplies one M x P product pointwise: cheaper than another block of p columns.

    Parameters
    ----------
    x, nu, tau : (P,)
    p : parameters of shape (M, 1)
    fixed : R[A], if known from before: it does not depend on the network

    Returns
    -------
    Tensor (M, P)
    """
    b, h, constant = network.split(p.stack(), features(*coordinates(x, nu, tau, model)))
    b, h = b[:, 0], jets.unstack(h.unbind(0))  # (M, width), channels of (P, width)
    blocks = [  # the first is -s^2/2 L[tau h], and L[tau] = -2/s^2
        (1.0, torch.addcmul(h.value, (-0.5 * _variance(nu, model) * tau)[:, None], h.xx)),
        (p.r, tau[:, None] * (h.value - h.x)),
    ]
    pointwise = [(1 + p.r * tau, constant)]  # <b, c> depends on the parameters alone
    for terms, scale, channel in (
        (model.covariance(nu, p), -1.0, h.xnu),
        (model.variance_of_variance(nu, p), -0.5, h.nunu),
        (model.drift(nu, p), -1.0, h.nu),
    ):
        if len(terms) == 1:
            ((f, g),) = terms
            blocks.append((f, (scale * tau * g)[:, None] * channel))
        else:
            total = sum(f * g for f, g in terms)  # (M, P)
            pointwise.append((total, b @ ((scale * tau)[:, None] * channel).T))
    if fixed is None:
        fixed = anchor_residual(x, nu, tau, p, model=model)
    left = torch.cat([f * b for f, _ in blocks], dim=1)
    right = torch.cat([column for _, column in blocks], dim=1)
    total = torch.addmm(fixed, left, right.T)
    for coefficient, product in pointwise:
        total = torch.addcmul(total, coefficient, product)
    return total


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

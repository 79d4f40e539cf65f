r"""The pricing equation on a jet, for any model, and the losses of III.C.

`models.model` states it: u_tau - N[u] = 0. For Heston that is DeepSVM's eq. 5.

Its first derivatives and u_xx occur together, as -s^2/2 L[u] with

.. math:: L[u] = u_{xx} - u_x - \frac{2}{s^2}\,u_\tau ,

and L obeys the chain and product rules of u_xx, because it differs from it by first derivatives
alone. So a jet on `coordinates` carries L in its channel xx and none in tau: six channels do for
one variance. Where a model has more states than noises (a lifted one: one noise, many factors) the
drift goes into L as well, and no factor needs a channel of its own: six channels do for any
number of factors that one noise moves.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..arithmetic.jets import Jet
from ..models import claims, heston
from ..models.model import Model, Terms, as_states
from .ansatz import At, anchor
from .networks import DeepONet


def full_coordinates(x: Tensor, state, tau: Tensor, model: Model = heston.MODEL):
    """(x, states, tau) as jets with every first derivative: for `residual` and the Greeks.

    >>> x, (nu,), tau = full_coordinates(*torch.tensor([0.1, 0.04, 1.0]))
    >>> x.x, nu.nu, tau.tau
    (1, 1, 1)
    """
    states = []
    for name, y in zip(model.states, as_states(state), strict=True):
        along = {d: w[name] for d, w in model.noises.items() if name in w}
        own = {} if name in model.noises else {name: 1}
        states.append(Jet(y, pairs=model.pairs, **_ones(along), **own))
    return (
        Jet(x, pairs=model.pairs, x=1),
        tuple(states),
        Jet(tau, pairs=model.pairs, tau=1),
    )


def _ones(seeds: dict) -> dict:
    """Seeds with 1.0 as the integer that multiplications are spared for."""
    return {k: 1 if v == 1 else v for k, v in seeds.items()}


def residual(u: Jet, state, p, model: Model = heston.MODEL) -> Tensor:
    """u_tau - N[u] of a jet on `full_coordinates`: zero for the true price.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> u = heston.derivatives(0.1, 0.04, 1.0, p).jet()  # of the true price
    >>> bool(residual(u, torch.tensor(0.04, dtype=torch.float64), p).abs() < 1e-12)
    True

    Parameters
    ----------
    u : channels of any shape
    state : tensor, or tuple of tensors, that broadcast against them; p : the parameters
    """
    state = as_states(state)
    total = u.part("tau") - 0.5 * model.variance(p, *state) * (u.xx - u.x)
    for name, terms in model.drift(p, *state).items():
        if name not in model.noises:
            total = total - _sum(terms) * u.part(name)
    return total - _rest(u, state, p, model)


def _rest(u: Jet, state, p, model: Model) -> Tensor:
    """What L does not hold: r (u_x - u), the other second derivatives, the drift along noises."""
    total = p.r * (u.x - u.value)
    for (a, b), terms in model.covariances(p, *state).items():
        channel = u.part(a + b)
        total = total + _sum(terms) * (0.5 * channel if a == b else channel)
    for name, terms in model.drift(p, *state).items():
        if name in model.noises:
            total = total + _sum(terms) * u.part(name)
    return total


def _sum(terms: Terms):
    return sum(f * g for f, g in terms)


def coordinates(x: Tensor, state, tau: Tensor, model: Model = heston.MODEL, p=None):
    """(x, states, tau) as jets whose channel xx is L of them, for `short_residual`.

    `p` is asked for where the variance depends on it or the drift goes into L.

    >>> x, (nu,), tau = coordinates(*torch.tensor([0.1, 0.04, 1.0]))
    >>> x.xx, tau.xx  # L[x] = -1, L[tau] = -2 / nu
    (-1, tensor(-50.))
    """
    state = as_states(state)
    inverse = 2 / _variance(model, p, state)
    absorbed = [s for s in model.states if s not in model.noises]
    drift = model.drift(p, *state) if absorbed else {}
    states = []
    for name, y in zip(model.states, state, strict=True):
        seeds = _ones({d: w[name] for d, w in model.noises.items() if name in w})
        if name in absorbed:
            seeds["xx"] = inverse * _sum(drift[name])
        states.append(Jet(y, pairs=model.pairs, **seeds))
    return (
        Jet(x, pairs=model.pairs, x=1, xx=-1),
        tuple(states),
        Jet(tau, pairs=model.pairs, xx=-inverse),
    )


def short_residual(u: Jet, state, p, model: Model = heston.MODEL) -> Tensor:
    """`residual` of a jet on `coordinates`: the same to rounding, from fewer channels.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> x, (nu,), tau = coordinates(*torch.tensor([0.1, 0.04, 1.0]))
    >>> short_residual(tau * tau, nu.value, p)  # 2 tau + r tau^2
    tensor(2.0500)

    Returns
    -------
    Tensor of the shape that channels, state and parameters broadcast to, per year.
    """
    state = as_states(state)
    return -0.5 * _variance(model, p, state) * u.xx - _rest(u, state, p, model)


def _variance(model: Model, p, state) -> Tensor:
    return model.variance(p, *state).clamp_min(1e-12)  # L divides by it


def bilinear_residual(
    network: DeepONet,
    x: Tensor,
    state,
    tau: Tensor,
    p,
    *,
    model: Model = heston.MODEL,
    claim: claims.Claim = claims.CALL,
    fixed: Tensor | None = None,
) -> Tensor:
    r"""The residual of u = A + tau <b, t> (the `anchor`) as a matrix product.

    With T = tau t, the residual is R[A] + sum_j f_j(mu) <b(mu), g_j(y) D_j T>, where (f_j, g_j)
    run over the products in the model's coefficients and D_j is a derivative (or L): the M x P
    residuals are an (M, J p) by (J p, P) product, and no M x P array of derivatives exists.
    Where several products share a derivative, as in the drift, their sum is formed first and
    multiplies one M x P product pointwise: cheaper than another block of p columns. For models
    whose variance does not depend on the parameters (`Model.separable`), with a noise a state.

    >>> net = DeepONet([(0.0, 1.0)] * 5, [(0.0, 1.0)] * 3, latent=4, width=8, hidden=1)
    >>> x, nu, tau = torch.rand(3, 2, dtype=torch.float64)
    >>> bilinear_residual(net.double(), x, nu, tau, heston.sample_parameters(3)[:, None]).shape
    torch.Size([3, 2])

    Parameters
    ----------
    x, tau : (P,); state : (P,) or a tuple of such
    p : parameters of shape (M, 1)
    fixed : R[A], if known from before: it does not depend on the network

    Returns
    -------
    Tensor (M, P)
    """
    state = as_states(state)
    at, states, time = coordinates(x, state, tau, model)
    b, stack, constant = network.split(p.stack(), [at, *states, time])
    b, h = b[:, 0], stack.jet(stack.data.unbind(0))  # (M, width), channels of (P, width)
    blocks = [  # the first is -s^2/2 L[tau h], and L[tau] = -2/s^2
        (1.0, torch.addcmul(h.value, (-0.5 * _variance(model, None, state) * tau)[:, None], h.xx)),
        (p.r, tau[:, None] * (h.value - h.x)),
    ]
    pointwise = [(1 + p.r * tau, constant)]  # <b, c> depends on the parameters alone
    second = model.covariances(p, *state).items()
    parts = [(terms, -0.5 if i == j else -1.0, h.part(i + j)) for (i, j), terms in second]
    parts += [(terms, -1.0, h.part(i)) for i, terms in model.drift(p, *state).items()]
    for terms, scale, channel in parts:
        if len(terms) == 1:
            ((f, g),) = terms
            blocks.append((f, (scale * tau * g)[:, None] * channel))
        else:
            pointwise.append((_sum(terms), b @ ((scale * tau)[:, None] * channel).T))
    if fixed is None:
        fixed = anchor_residual(x, state, tau, p, model=model, claim=claim)
    left = torch.cat([f * b for f, _ in blocks], dim=1)
    right = torch.cat([column for _, column in blocks], dim=1)
    total = torch.addmm(fixed, left, right.T)
    for coefficient, product in pointwise:
        total = torch.addcmul(total, coefficient, product)
    return total


def anchor_residual(
    x: Tensor, state, tau: Tensor, p, *,
    model: Model = heston.MODEL, claim: claims.Claim = claims.CALL,
) -> Tensor:  # fmt: skip
    """R[A] of the Black-Scholes anchor, the shape that the arguments broadcast to.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.0, rho=0.0, r=0.05)
    >>> x, nu, tau = torch.tensor([0.1, 0.04, 1.0], dtype=torch.float64)
    >>> bool(anchor_residual(x, nu, tau, p).abs() < 1e-12)  # without noise it is the price
    True
    """
    nothing = Jet(torch.zeros((), dtype=x.dtype, device=x.device), pairs=model.pairs)
    at, states, time = full_coordinates(x, state, tau, model)
    u = anchor(nothing, At(at, states, time, p, model, claim))
    return residual(u, state, p, model)


def scaled_derivatives(
    f: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, order: int = 2
) -> tuple[Tensor, ...]:
    r"""(s f_x, s^2 f_xx)[:order] of a function of x, exact, by reverse mode of reverse mode.

    The derivatives along z = x/s: with s = sqrt(w), over which prices bend, they have the unit of
    f. No coefficient of the equation depends on x, so R_x is the residual of u_x, R_xx of u_xx.

    >>> x = torch.tensor([2.0])
    >>> scaled_derivatives(lambda x: x**3, x, torch.tensor(0.5))  # 3 x^2/2, 6 x/4
    (tensor([6.]), tensor([3.]))

    Parameters
    ----------
    f : pointwise in x, of the same shape; scale : of that shape
    """
    found = []
    for n in range(1, order + 1):
        f = torch.func.grad(_total(f))
        found.append(scale**n * f(x))
    return tuple(found)


def _total(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x).sum()


def scaled_differences(values: Sequence[Tensor], scale: Tensor, half: Tensor) -> tuple[Tensor, ...]:
    """The same from central differences: of f at x -/+ `half`, and at x between for the second.

    >>> x, h = torch.tensor([1.9, 2.0, 2.1], dtype=torch.float64), torch.tensor(0.1)
    >>> scaled_differences(x**3, torch.tensor(0.5), h)[1]  # off by O(h^2)
    tensor(3.0000, dtype=torch.float64)
    """
    low, *middle, high = values
    slope = (high - low) * (scale / (2 * half))
    if not middle:
        return (slope,)
    return slope, (high - 2 * middle[0] + low) * (scale / half) ** 2


def physics_loss(r: Tensor, lambda_max: float = 0.1, robust: float = 0.0) -> Tensor:
    """E[R^2] + lambda_max E[R^4] (eq. 12, with R taken pointwise).

    `r` has any shape; the loss is a scalar. With `robust` = c > 0 each R^2 becomes
    2 c^2 (sqrt(1 + R^2/c^2) - 1), the pseudo-Huber loss: squares below c, 2 c |R| above. It is
    |R| that the price error is a mean of, so it may not be flatter than that: a loss that forgives
    large residuals hides a kink in one of them.

    >>> physics_loss(torch.tensor([1.0, 2.0]))  # 2.5 + 0.1 * 8.5
    tensor(3.3500)
    """
    squared = r * r
    if robust:
        squared = 2 * robust**2 * ((1 + squared / robust**2).sqrt() - 1)
    return squared.mean() + lambda_max * (squared * squared).mean()


def boundary_loss(
    u: Tensor, x: Tensor, tau: Tensor, r: Tensor, claim: claims.Claim = claims.CALL
) -> Tensor:
    """Mean squared error against eqs. 7 and 8: e^x - e^{-r tau} where x > 0, 0 where x < 0.

    `u` in units of strike, `tau` in years; all broadcast, and the loss is a scalar.

    >>> x, tau, r = torch.tensor([2.0, 1.0, 0.05])
    >>> boundary_loss(x.exp() - torch.exp(-r * tau), x, tau, r)
    tensor(0.)
    """
    return ((u - claim.edge(x, tau, r)) ** 2).mean()

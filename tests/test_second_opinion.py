"""The stored operators, scored a second time by other means than the library's.

Truth: Heston's two probabilities in numpy, no control variate, and QuantLib on a sample. Networks:
a plain forward pass from the stored weights, differentiated twice by autograd, no jets.
Statistics: numpy. Only the points are the library's, for they are what is scored. The reference
numbers of chapters 2 and 5 that this reaches too may call themselves independent.
"""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from oracles import quantlib_heston_many
from scipy.optimize import lsq_linear
from scipy.special import ndtr

from soundgreeks import evaluation, heston, weights
from soundgreeks.book import reference
from soundgreeks.operators import PRESETS, PricingProblem

F64 = torch.float64
STORED = {
    "printed": "deepsvm", "anchor": "paper_anchor", "implied": "paper_implied", "sound": "sound",
    "points": "paper_points",
}  # fmt: skip


def agrees(key, value, evidence="independent"):
    entry = reference.load()[key]
    assert entry.holds(float(value)), (key, float(value), entry.statement())
    assert evidence is None or entry.evidence == evidence, key


# --- The truth, by another integral --------------------------------------------------------------


def exponent(z, nu, tau, kappa, theta, sigma, rho):
    """ln E[e^{iz Y}], Y = ln(S_tau / forward), for complex z: the branch that does not jump."""
    b = kappa - 1j * rho * sigma * z
    d = np.sqrt(b * b + sigma**2 * (z * z + 1j * z))
    g, decay = (b - d) / (b + d), np.exp(-d * tau)
    slope = (b - d) / sigma**2 * (1 - decay) / (1 - g * decay)
    level = (b - d) * tau - 2 * np.log((1 - g * decay) / (1 - g))
    return kappa * theta / sigma**2 * level + slope * nu


def probabilities(x, nu, tau, p, piece=200, nodes=96):
    """P(S > K) under the share's and the bond's measure, and the density of ln S under the first.

    Gil-Pelaez by the midpoint rule, options of like variance together. `x` (n,), or (n, m) for
    m options that share all but x.
    """
    kappa, theta, sigma, rho, r = (np.asarray(v, float) for v in p)
    x, nu, tau = (np.asarray(v, float) for v in (x, nu, tau))
    lines = x.reshape(len(x), -1)
    k = lines + (r * tau)[:, None]
    w = theta * tau + (nu - theta) * -np.expm1(-kappa * tau) / kappa
    share, bond, density = (np.zeros_like(k) for _ in range(3))
    order = np.argsort(w)
    for i in range(0, len(order), piece):
        at = order[i : i + piece]
        own = [v[at, None] for v in (nu, tau, kappa, theta, sigma, rho)]
        h = 2 * math.pi / (6 + 30 * math.sqrt(w[at].max()))  # where the next copy lies
        start, largest = 0, 1.0
        while largest > 1e-13:
            u = (start + np.arange(nodes) + 0.5) * h
            with np.errstate(under="ignore"):
                one, two = (np.exp(exponent(u - shift, *own)) for shift in (1j, 0))
            wave = np.exp(1j * k[at, :, None] * u)
            first = (wave * one[:, None]).real.sum(-1)
            share[at] += h / math.pi * (wave * (one / u)[:, None]).imag.sum(-1)
            bond[at] += h / math.pi * (wave * (two / u)[:, None]).imag.sum(-1)
            density[at] += h / math.pi * first
            start += nodes
            largest = max(abs(one[:, -1]).max(), abs(two[:, -1]).max())
            assert start < 100_000
    return tuple(v.reshape(x.shape) for v in (share + 0.5, bond + 0.5, density))


def truth(x, nu, tau, p):
    """Price, Delta and Gamma."""
    share, bond, density = probabilities(x, nu, tau, p)
    *_, r = p
    discount = np.exp(-np.asarray(r) * np.asarray(tau))
    discount = discount.reshape((-1,) + (1,) * (np.ndim(x) - 1))
    spot = np.exp(np.asarray(x))
    return spot * share - discount * bond, share, density / spot


# --- The networks, by autograd -------------------------------------------------------------------


def perceptron(h, tensors, prefix, activation):
    """h -> h + act(W h + b) from the second layer on; the last layer is linear."""
    names = sorted({k.split(".")[-2] for k in tensors if k.startswith(f"{prefix}.layers.")})
    for i, name in enumerate(names):
        weight, bias = (tensors[f"{prefix}.layers.{name}.{s}"].to(F64) for s in ("weight", "bias"))
        out = h @ weight.T + bias
        if i == len(names) - 1:
            return out
        h = activation(out) if i == 0 else h + activation(out)


def black(k, s):
    """Undiscounted call of total deviation s."""
    d1 = k / s + s / 2
    return torch.exp(k) * torch.special.ndtr(d1) - torch.special.ndtr(d1 - s)


def smile(k, w, nu, tau, p):
    """Three features and the relative variance of the integrated variance, in closed form."""
    kappa, theta, sigma, rho, _ = p
    e = torch.exp(-kappa * tau)
    a = (1 - e) / kappa
    one = (a - tau * e) / kappa  # of nu; the rest of theta
    first = theta * ((tau - a) / kappa - one) + nu * one
    two = (a - 2 * tau * e + e * a) / kappa**2
    second = theta * ((tau - 2 * a + (1 - e**2) / (2 * kappa)) / kappa**2 - two) + nu * two
    three = (a / kappa - tau * e / kappa - e * tau**2 / 2) / kappa
    ends = ((tau - a) / kappa - (1 - e * (1 + kappa * tau)) / kappa**2) / kappa
    third = theta * (ends - three) + nu * three
    z = 4 * torch.tanh(k / w.sqrt() / 4)
    l = 0.5 - z / w.sqrt()  # noqa: E741
    of_first, of_second = sigma * rho * first * l / w, sigma**2 * (
        rho**2 * third * (l**2 - 1 / w)
        + rho**2 * first**2 / 4 * (3 / w**2 + 3 * l / w - 5 * l**2 / w)
        + second / 4 * (l**2 - l - 1 / w)
    ) / w  # fmt: skip
    total = 1.5 * torch.tanh((of_first + of_second - of_first**2 / 2) / 1.5)
    skew, spread = sigma * rho * first / w**1.5, sigma**2 * second / w**2
    return [4 * skew, 3 * spread.sqrt(), 2 * total], spread


class Plain:
    """A stored operator from its weights and the formulas of chapters 2 and 5."""

    def __init__(self, name):
        self.tensors, about = weights.read(name)
        self.config = about["config"]
        self.ranges = self.config["domain"]["ranges"]

    def unit(self, names, values):
        """Rescaled to [-1, 1]."""
        ends = torch.tensor([self.ranges[n] for n in names], dtype=F64)
        middle, reach = ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2
        return (torch.stack(torch.broadcast_tensors(*values), -1) - middle) / reach

    def price(self, x, nu, tau, p):
        kappa, theta, sigma, rho, r = p
        k = x + r * tau
        w = theta * tau + (nu - theta) * (1 - torch.exp(-kappa * tau)) / kappa
        if self.config["network"] == "deeponet":
            gelu = torch.nn.functional.gelu
            mu = self.unit(("kappa", "theta", "sigma", "rho", "r"), p)
            y = self.unit(("x", "nu", "tau"), (x, nu, tau))
            branch = perceptron(mu, self.tensors, "network.branch", gelu)
            trunk = perceptron(y, self.tensors, "network.trunk", gelu)
            n = (branch * trunk).sum(-1) / math.sqrt(self.config["latent"])
        else:
            features = [
                torch.tanh(k / w.sqrt() / 3), 1 + w.log() / 4, 4 * nu / (nu + theta) - 2,
                tau.sqrt(), torch.tanh(k), kappa.log(), 1.5 + theta.log() / 2,
                sigma / (2 * kappa * theta).sqrt(), 1 + 2 * rho,
            ]  # fmt: skip
            if self.config["ansatz"] == "smile":
                extra, spread = smile(k, w, nu, tau, p)
                features += extra
            h = torch.stack(torch.broadcast_tensors(*features), -1)
            n = perceptron(h, self.tensors, "network", torch.nn.functional.silu)[..., 0]
        if self.config["ansatz"] == "printed":
            return torch.relu(torch.exp(x) - 1) + tau * torch.nn.functional.softplus(n)
        if self.config["ansatz"] == "anchor":
            return torch.exp(-r * tau) * black(k, w.sqrt()) + tau * n
        if self.config["ansatz"] == "implied_scaled":
            n = sigma * tau.sqrt() * n
        if self.config["ansatz"] == "smile":
            n = extra[2] / 2 + spread / (1 + spread) * n
        return torch.exp(-r * tau) * black(k, (w * torch.exp(n)).sqrt())

    def greeks(self, x, nu, tau, p):
        """Price, Delta and Gamma, as numpy."""
        parts = [[], [], []]
        for i in range(0, len(x), 2000):
            at = slice(i, i + 2000)
            spot = torch.exp(x[at]).requires_grad_()
            u = self.price(spot.log(), nu[at], tau[at], tuple(v[at] for v in p))
            (delta,) = torch.autograd.grad(u.sum(), spot, create_graph=True)
            (gamma,) = torch.autograd.grad(delta.sum(), spot)
            for part, value in zip(parts, (u, delta, gamma), strict=True):
                part.append(value.detach())
        return tuple(torch.cat(part).numpy() for part in parts)

    def residual(self, x, nu, tau, p):
        """Eq. 5 by nested autograd."""
        kappa, theta, sigma, rho, r = p
        y = [v.clone().requires_grad_() for v in (x, nu, tau)]
        u = self.price(*y, p)

        def slopes(v):
            return torch.autograd.grad(v.sum(), y, retain_graph=True, create_graph=True)

        u_x, u_n, u_t = slopes(u)
        (u_xx, u_xn, _), u_nn = slopes(u_x), slopes(u_n)[1]
        second = nu / 2 * u_xx + rho * sigma * nu * u_xn + sigma**2 * nu / 2 * u_nn
        first = (r - nu / 2) * u_x + kappa * (theta - nu) * u_n - r * u
        return (u_t - second - first).detach()


@cache
def plain(name):
    return Plain(STORED.get(name, name))


# --- Statistics, in numpy ------------------------------------------------------------------------


def deviation(price, k):
    """Total deviation sqrt(w) of an undiscounted price, by bisection; NaN outside the bounds."""
    low, high = np.zeros_like(k), np.full_like(k, 4.0)
    for _ in range(70):
        s = (low + high) / 2
        near, far = k / s - s / 2, k / s + s / 2
        out = np.where(k > 0, ndtr(-near) - np.exp(k) * ndtr(-far),
                       np.exp(k) * ndtr(far) - ndtr(near))  # fmt: skip
        below = np.maximum(np.expm1(k), 0) + out <= price
        low, high = np.where(below, s, low), np.where(below, high, s)
    inside = (price > np.maximum(np.expm1(k), 0)) & (price < np.exp(k))
    return np.where(inside, s, np.nan)


@cache
def scored(seed, n):
    """The points of `evaluation.draw(seed, n)` that count as "all", and the truth there."""
    data = evaluation.draw(seed, n)
    part = slice(0, n * 6 // 10)
    points = data.x[part], data.nu[part], data.tau[part], data.p[part]
    return points, truth(*points)


def errors(name, seed, n):
    points, (price, delta, gamma) = scored(seed, n)
    found = plain(name).greeks(*points)
    table = {}
    for greek, a, b in zip(("price", "delta", "gamma"), found, (price, delta, gamma), strict=True):
        table[f"{greek}_rmse"] = np.sqrt(np.mean((a - b) ** 2))
        table[f"{greek}_worst"] = np.max(abs(a - b))
    x, _, tau, p = points
    k, growth = (x + p.r * tau).numpy(), torch.exp(p.r * tau).numpy()
    true, ours = (deviation(v * growth, k) for v in (price, found[0]))
    near = abs(k) <= 3 * true
    bp = (1e4 * (ours - true) / tau.sqrt().numpy())[near]
    table["vol_rmse_bp"] = np.sqrt(np.nanmean(bp**2))
    return table


def shape(name, seed, n, points):
    """Share of negative Gammas and the lowest one, on the curves of `evaluation.curves`."""
    seen = {}

    class Spy:  # is asked for Greeks by the library, and keeps where
        def greeks(self, x, nu, tau, p):
            seen.update(points=(x, nu, tau, p))
            return heston.Greeks(*[torch.zeros_like(x)] * 5)

    evaluation.curves(Spy(), seed, n, points)
    x, nu, tau, p = seen["points"]
    gamma = plain(name).greeks(x, nu, tau, p)[2].reshape(n, points)
    first = slice(None, None, points)
    line = x.reshape(n, points)
    true = truth(line, nu[first], tau[first], tuple(v[first] for v in p))[2]
    inner = abs(line[0].numpy()) <= 0.5
    relative, peaks = gamma / true.max(1, keepdims=True), true / true.max(1, keepdims=True)
    visible = peaks[:, inner] > 1e-6
    return (relative[:, inner][visible] < 0).mean(), min(0.0, relative[:, inner].min())


# --- The opinions --------------------------------------------------------------------------------


def test_the_truth_is_quantlibs():
    """On a sample of the points that chapter 5 scores; QuantLib's own tolerance decides where."""
    (x, nu, tau, p), (price, *_) = scored(0, 10_000)
    part = slice(0, 6000, 20)
    options = x[part], nu[part], tau[part], p[part]
    one, two = (quantlib_heston_many(*options, engine=e) for e in ("adaptive", "laguerre"))
    reliable = abs(one - two) < 1e-8  # where two of its engines agree
    assert reliable.sum() > 200, reliable.sum()
    assert abs(price[part] - one)[reliable].max() < 1e-8


def test_the_truth_has_quantlibs_greeks():
    """Differences of QuantLib's prices in the spot, where it is exact enough for them."""
    (x, nu, tau, p), (_, delta, gamma) = scored(0, 10_000)
    part = torch.nonzero((tau > 0.2) & (nu > 0.05) & (x.abs() < 0.5))[:40, 0]
    options = nu[part], tau[part], p[part]
    spot, h = x[part].exp(), 0.01
    up, middle, down = (
        quantlib_heston_many((spot + i * h).log(), *options, engine="laguerre") for i in (1, 0, -1)
    )
    assert abs((up - down) / (2 * h) - delta[part]).max() < 2e-3
    assert abs((up - 2 * middle + down) / h**2 - gamma[part]).max() < 2e-2


@pytest.mark.parametrize("name", STORED)
def test_chapter_5_scores(name):
    found = errors(name, 0, 10_000)
    for what in ("price_rmse", "price_worst", "delta_rmse", "gamma_rmse", "vol_rmse_bp"):
        agrees(f"noise.{name}.{what}", found[what])
    negative, lowest = shape(name, 0, 60, 240)
    agrees(f"noise.{name}.negative_gammas", negative)
    agrees(f"noise.{name}.worst_negative_gamma", lowest)


@pytest.mark.parametrize("name", list(STORED)[:3])
def test_chapter_2_scores(name):
    found = errors(name, 1, 4000)
    for what, key in (("price_rmse", "price"), ("price_worst", "worst"), ("delta_rmse", "delta")):
        agrees(f"ansatz.paper.{name}_{key}", found[what], evidence=None)
    negative, lowest = shape(name, 1, 50, 200)
    agrees(f"ansatz.paper.{name}_negative", negative, evidence=None)
    agrees(f"ansatz.paper.{name}_low", lowest, evidence=None)


@pytest.mark.parametrize("name", STORED)
def test_losses_on_fresh_points(name):
    """Eqs. 11 to 13 by nested autograd."""
    losses, operator = [], weights.load(STORED[name])
    sizes = dict(model=operator.config.model, points=4096, atm=1024, boundary=512)
    for i in range(5):
        config, total = replace(PRESETS["paper"], seed=17 + i, **sizes), 0.0
        for kind, at in PricingProblem(operator, config).sets.items():
            if kind == "boundary":
                u = plain(name).price(at.x, at.nu, at.tau, at.p)
                edge = torch.where(at.x > 0, at.x.exp() - torch.exp(-at.p.r * at.tau), 0.0)
                total += float(((u - edge) ** 2).mean())
            else:
                square = plain(name).residual(at.x, at.nu, at.tau, at.p) ** 2
                total += float(square.mean() + 0.1 * (square**2).mean())
        losses.append(total)
    agrees(f"noise.{name}.fresh_loss", np.median(losses))


def test_the_price_that_the_printed_residual_asks_for():
    """u_0 by the probabilities of another integral, and what is left of the time value."""
    (x, nu, tau, p), (price, *_) = scored(0, 10_000)
    few = slice(0, 400)
    x, nu, tau, p, price = x[few], nu[few], tau[few], p[few], price[few]
    found = plain("printed").greeks(x, nu, tau, p)[0]
    asked = np.maximum(np.expm1(x.numpy()), 0)
    for node, share in zip(*np.polynomial.legendre.leggauss(8), strict=True):
        q = (float(node) + 1) / 2
        s = tau * q**2
        bond = probabilities(x, nu, s, p)[1]
        asked = asked + (p.r * q * share * tau * torch.exp(-p.r * s)).numpy() * bond
    floor = np.maximum((x.exp() - torch.exp(-p.r * tau)).numpy(), 0)

    def rms(v):
        return np.sqrt(np.mean(v**2))

    agrees("noise.collapse.to_asked", rms(found - asked))
    agrees("noise.collapse.to_intrinsic", rms(found - floor))
    agrees("noise.collapse.lost", rms(found - price) / rms(price - asked))


def test_beyond_feller():
    market = [torch.full((400,), v, dtype=F64) for v in (1.5, 0.04, 0.8, -0.7, 0.02)]
    x = torch.linspace(-1, 1, 400, dtype=F64)
    nu, tau = torch.full_like(x, 0.04), torch.full_like(x, 0.5)
    worst = abs(plain("sound").greeks(x, nu, tau, market)[0] - truth(x, nu, tau, market)[0]).max()
    agrees("noise.outside_feller", worst / errors("sound", 0, 10_000)["price_rmse"])


def test_spread_over_evaluation_seeds():
    found = [errors("sound", seed, 5000)["price_rmse"] for seed in (101, 102, 103)]
    agrees("noise.exercise.seeds", max(found) / min(found))


def test_the_penalty_by_bounded_least_squares():
    """Chapter 5's convex problem with the positive part of Gamma as unknowns of its own."""
    one = [torch.tensor([v], dtype=F64) for v in (0.1, 0.5, 2.9, 0.19, 1.0, -0.7, 0.08)]
    degree, band = 64, np.linspace(-0.05, 0.05, 200)
    fine = np.concatenate([np.linspace(-0.5, 0.5, 4000), [-1e-7, 1e-7]])
    nodes = np.cos(np.pi * (np.arange(1000) + 0.5) / 1000)

    def true(x):
        return [v[0] for v in truth(torch.tensor(x)[None], one[0], one[1], one[2:])]

    def columns(x):
        """Price and Gamma of every Chebyshev polynomial, by its trigonometric form."""
        angle, n = np.arccos(x)[:, None], np.arange(degree + 1)
        value, sine = np.cos(n * angle), np.sin(angle)
        slope = n * np.sin(n * angle) / sine
        second = (x[:, None] * slope - n**2 * value) / sine**2
        return value, np.exp(-x)[:, None] * slope, np.exp(-2 * x)[:, None] * (second - slope)

    price, gammas = columns(nodes)[0] / 1000**0.5, columns(band)[2] * (1e-2 / 200) ** 0.5
    target = (true(nodes)[0] - np.maximum(np.expm1(nodes), 0)) / 1000**0.5
    plain_fit = np.linalg.lstsq(price, target, rcond=None)[0]
    system = np.block([[price, np.zeros((1000, 200))], [gammas, -np.eye(200)]])
    free = np.r_[np.full(degree + 1, -np.inf), np.zeros(200)]
    fit = lsq_linear(system, np.r_[target, np.zeros(200)], (free, np.inf), method="bvls", tol=1e-14)
    assert fit.success, fit.message
    value, slope, gamma = columns(fine)
    exact, delta, bell = true(fine)
    step, payoff = fine > 0, np.maximum(np.expm1(fine), 0)
    found = fit.x[: degree + 1]
    agrees("noise.penalty.low_without", (gamma @ plain_fit).min() / bell.max())
    agrees("noise.penalty.low_band", (gamma @ found)[abs(fine) <= 0.05].min() / bell.max())
    agrees("noise.penalty.low_with", (gamma @ found).min() / bell.max())
    errors = [abs(value @ c + payoff - exact).max() for c in (found, plain_fit)]
    agrees("noise.penalty.price_with", errors[0] / errors[1])
    ends = [int(np.argmin(abs(fine - e))) for e in (-0.05, 0.05)]
    miss = abs(slope @ found + step - delta)[ends].max()
    agrees("noise.penalty.bound", miss / (0.5 * (1 - np.diff(delta[ends])[0])))

"""The smile to second order: its integrals by other means, its order, its arbitrage."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad

from soundgreeks import black_scholes, garch, heston
from soundgreeks.arithmetic.jets import Jet
from soundgreeks.models import smile
from soundgreeks.operators import ansatz, evaluation

P = dict(kappa=2.5, theta=0.09, sigma=0.6, rho=-0.8, r=0.03)


def by_scipy(power, nu, tau):
    """skew, bend and spread by adaptive quadrature of the definitions."""
    k, theta, sigma, rho = (P[name] for name in ("kappa", "theta", "sigma", "rho"))

    def v(s):
        return theta + (nu - theta) * math.exp(-k * s)

    def a(s):
        return (1 - math.exp(-k * (tau - s))) / k

    w = quad(v, 0, tau)[0]
    first = quad(lambda s: v(s) ** (power + 0.5) * a(s), 0, tau)[0]
    second = quad(lambda s: v(s) ** (2 * power) * a(s) ** 2, 0, tau)[0]

    def inner(t, s):
        slope = (power + 0.5) * v(s) ** (power - 0.5) * a(s)
        return slope * v(t) ** (power + 0.5) * math.exp(-k * (s - t))

    mixed = dblquad(inner, 0, tau, 0, lambda s: s)[0]
    return sigma * rho * first / w**1.5, (sigma * rho) ** 2 * mixed / w**2, sigma**2 * second / w**2


@pytest.mark.parametrize("module", [heston, garch])
@pytest.mark.parametrize("nu, tau", [(0.05, 0.8), (0.3, 0.02), (0.01, 1.0)])
def test_moments_are_the_integrals(module, nu, tau):
    p = module.MODEL.checked(module.Parameters(**P))
    nu, tau = torch.tensor([nu, tau], dtype=torch.float64)
    y = module.MODEL.expected_variance(p, tau, nu).log()
    found = module.MODEL.smile_moments(p, tau, y, nu)
    truth = by_scipy(module.MODEL.power, float(nu), float(tau))
    assert [float(v) for v in found] == pytest.approx(truth, rel=1e-4)


def test_jets_of_the_correction_are_its_derivatives():
    p = heston.MODEL.checked(heston.Parameters(**P))

    def value(x, nu, tau):
        at = ansatz.At(Jet(x), Jet(nu), Jet(tau), p)
        return at.smile.value

    point = torch.tensor([0.1, 0.05, 0.8], dtype=torch.float64)
    jet = ansatz.At(Jet(point[0], x=1), Jet(point[1], nu=1), Jet(point[2], tau=1), p).smile
    slope = torch.autograd.functional.jacobian(lambda q: value(*q), point)
    bend = torch.autograd.functional.hessian(lambda q: value(*q), point)
    assert [float(jet.x), float(jet.nu), float(jet.tau)] == pytest.approx(slope.tolist(), rel=1e-9)
    found = [float(jet.xx), float(jet.xnu), float(jet.nunu)]
    truth = [float(bend[0, 0]), float(bend[0, 1]), float(bend[1, 1])]
    assert found == pytest.approx(truth, rel=1e-8)


def test_what_is_left_is_of_third_order(monkeypatch):
    """ln W against the true implied variance: without limits the error falls with sigma cubed."""
    monkeypatch.setattr(smile, "_WING", 1e6)
    monkeypatch.setattr(smile, "_MOST", 1e6)
    k = torch.linspace(-0.2, 0.2, 9, dtype=torch.float64)
    sizes, left = [0.2, 0.1, 0.05], []
    for sigma in sizes:
        p = heston.MODEL.checked(heston.Parameters(2.5, 0.09, sigma, -0.8, 0.0))
        at = ansatz.At(Jet(k), Jet(torch.tensor(0.05).double()), Jet(torch.tensor(0.8).double()), p)
        true = black_scholes.implied_variance(heston.call(k, 0.05, 0.8, p), k)
        left.append(float(((at.y + at.smile).value - true.log()).abs().max()))
    orders = np.diff(np.log(left)) / np.diff(np.log(sizes))
    assert (abs(orders - 3) < 0.3).all()


def test_the_anchor_alone_is_worth_a_network():
    data = evaluation.draw(0, 2000)
    n, (x, nu, tau) = Jet(torch.zeros(2000)), (Jet(v) for v in (data.x, data.nu, data.tau))
    at = ansatz.At(x, nu, tau, data.p)
    rmse = {
        name: (ansatz.ANSATZ[name](n, at).value - data.price).square().mean().sqrt()
        for name in ("implied", "smile")
    }
    assert rmse["smile"] < 5e-4 < 2e-3 < rmse["implied"]


def test_single_precision_is_enough():
    data = evaluation.draw(1, 1000)
    found = []
    for dtype in (torch.float32, torch.float64):
        x, nu, tau = (Jet(v.to(dtype)) for v in (data.x, data.nu, data.tau))
        found.append(ansatz.At(x, nu, tau, data.p.map(lambda v, d=dtype: v.to(d))).smile.value)
    assert (found[0] - found[1]).abs().max() < 2e-5


def test_edges_of_the_domain_are_finite():
    p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))
    for nu, tau, sigma in ((0.0, 1.0, 0.3), (0.04, 0.0, 0.3), (0.04, 1.0, 0.0), (0.0, 0.0, 0.0)):
        q = p._replace(sigma=torch.tensor(sigma, dtype=torch.float64))
        x, nu, tau = (torch.tensor(v, dtype=torch.float64) for v in (0.0, nu, tau))
        at = ansatz.At(Jet(x, x=1), Jet(nu, nu=1), Jet(tau, tau=1), q)
        parts = at.smile.parts.values()
        assert all(torch.as_tensor(v).isfinite().all() for v in (at.smile.value, *parts))


def test_a_model_of_another_kind_says_so():
    from soundgreeks.models import model

    class Other(model.Model):
        name = "other"

    with pytest.raises(NotImplementedError, match="other has no power: override smile_moments"):
        Other().smile_moments(None, torch.ones(()), torch.zeros(()), torch.ones(()))
    assert smile.Moments(1, 2, 3).bend == 2

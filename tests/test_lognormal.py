"""The log-normal variance: coefficients against the law of ln nu, smile and network against finite
differences."""

import numpy as np
import pytest
import torch

from soundgreeks import black_scholes, equation, lognormal, paths, weights
from soundgreeks.arithmetic.jets import Jet
from soundgreeks.models import finite_differences, smile
from soundgreeks.operators import ansatz

F64 = torch.float64
MODEL = lognormal.MODEL
P = MODEL.checked(lognormal.Parameters(2.0, 0.06, 1.2, -0.7, 0.03))


def test_the_expected_variance_solves_its_equation():
    """w_tau = nu + m w_nu + v w_nunu / 2: drift and noise of nu follow from those of ln nu."""
    nu, tau = torch.tensor([0.02, 0.06, 0.3], dtype=F64), torch.tensor(0.7, dtype=F64)
    _, (state,), time = equation.full_coordinates(tau, nu, tau, MODEL)
    w = MODEL.expected_variance(P, time, state)
    drift = sum(f * g for f, g in MODEL.drift(P, nu)["nu"])
    ((f, g),) = MODEL.covariances(P, nu)["nu", "nu"]
    right = nu + drift * w.nu + 0.5 * f * g * w.nunu
    torch.testing.assert_close(w.tau, right, rtol=1e-4, atol=0)  # of the quadrature
    assert (drift - 2.0 * (0.06 - nu)).abs().max() > 0.02  # Heston's drift would not do


def test_a_step_of_the_logarithm_is_exact():
    z = torch.randn(1, 2**18, dtype=F64, generator=torch.Generator().manual_seed(0))
    dt, nu = torch.tensor(0.8, dtype=F64), torch.tensor(0.2, dtype=F64)
    after = MODEL.step(P, dt, z, nu).state[0].log()
    fade = np.exp(-2.0 * 0.8)
    mean = np.log(0.06) + fade * np.log(0.2 / 0.06)
    spread = 1.2 * np.sqrt((1 - fade**2) / 4.0)
    assert abs(float(after.mean()) - mean) < 4 * spread / 2**9
    assert abs(float(after.std()) / spread - 1) < 4 / 2**9.5


def test_paths_meet_finite_differences():
    x = torch.tensor([[-0.2, 0.0, 0.2]], dtype=F64)
    options = dict(paths=2**15, count=100, generator=torch.Generator().manual_seed(1))
    found = paths.conditional_call(MODEL, x, torch.tensor([0.1]).double(), 0.5, P, **options)
    true = finite_differences.price(MODEL, x[0], 0.1, 0.5, P)
    assert ((found.price[0] - true.price).abs() < 4 * found.price_error[0]).all()
    assert ((found.gamma[0] - true.gamma).abs() < 4 * found.gamma_error[0]).all()
    wrong = finite_differences.price(MODEL, x[0], 0.1, 0.5, P._replace(rho=torch.tensor(-0.4)))
    assert (found.price[0] - wrong.price).abs().max() > 8 * found.price_error.max()


def test_what_is_left_of_the_smile_is_of_third_order(monkeypatch):
    """Bergomi and Guyon's functionals: without limits the error falls with sigma cubed."""
    monkeypatch.setattr(smile, "_WING", 1e6)
    monkeypatch.setattr(smile, "_MOST", 1e6)
    k = torch.linspace(-0.1, 0.1, 5, dtype=F64)
    sizes, left = [1.2, 0.6, 0.3], []
    for sigma in sizes:
        p = MODEL.checked(lognormal.Parameters(2.5, 0.09, sigma, -0.8, 0.0))
        nu, tau = (torch.tensor(v, dtype=F64) for v in (0.05, 0.8))
        at = ansatz.At(Jet(k), Jet(nu), Jet(tau), p, MODEL)
        true = finite_differences.price(MODEL, k, 0.05, 0.8, p).price
        w = black_scholes.implied_variance(true, k)
        left.append(float(((at.y + at.smile).value - w.log()).abs().max()))
    orders = np.diff(np.log(left)) / np.diff(np.log(sizes))
    assert (abs(orders - 3) < 0.3).all(), orders


def test_the_condition_and_its_edge():
    p = MODEL.sample(200, generator=torch.Generator().manual_seed(0))
    assert lognormal.is_tame(p).all() and (MODEL.closeness(p) < 1).all()
    assert not lognormal.is_tame(P._replace(sigma=torch.tensor(2.1)))
    moved = MODEL.at_closeness(p, torch.full((200,), 0.9, dtype=F64))
    torch.testing.assert_close(MODEL.closeness(moved), torch.full((200,), 0.9, dtype=F64))
    near = MODEL.near_edge(p, torch.full((200,), 0.5, dtype=F64), MODEL.domain)
    changed = near.sigma != p.sigma
    assert changed.any() and ((MODEL.closeness(near)[changed] - 0.9).abs() < 1e-9).all()


@pytest.mark.parametrize("row", [(0.3, 2.5, 0.04, 1.9, -0.9), (0.1, 1.0, 0.15, 0.6, -0.3)])
def test_the_network_meets_finite_differences(row):
    nu, *q = row
    p, x = lognormal.Parameters(*q, 0.04), torch.tensor([-0.4, 0.0, 0.3], dtype=F64)
    true = finite_differences.price(MODEL, x, nu, 0.9, p)
    found = weights.load("lognormal").greeks(x, nu, 0.9, p)
    assert (found.price - true.price).abs().max() < 1e-5
    assert (found.delta - true.delta).abs().max() < 1e-4

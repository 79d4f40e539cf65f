"""Simulated variances against their exact law; the noise against its own moments."""

import math

import pytest
import torch

from soundgreeks import heston, paths

F64 = torch.float64
P = heston.Parameters(*torch.tensor([1.5, 0.06, 0.35, -0.7, 0.03], dtype=F64))


def ends(p, n=2**18, count=24, seed=0):
    noise = torch.randn(count, n, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return paths.heston(0.09, 0.5, p, noise)


def moments(p, nu=0.09, tau=0.5):
    """Mean and variance of the variance at tau (Cox, Ingersoll and Ross 1985)."""
    e = math.exp(-p.kappa * tau)
    mean = p.theta + (nu - p.theta) * e
    spread = nu * (e - e * e) + p.theta / 2 * (1 - e) ** 2
    return mean, p.sigma**2 / p.kappa * spread


def distances(p, truth=P):
    """Of mean, variance and noise from the truth, in standard errors."""
    end = ends(p)
    # nu_tau from the equation of the variance, whose every other term is known
    nu = 0.09 + truth.kappa * (truth.theta * 0.5 - end.integrated) + p.sigma * end.martingale
    mean, variance = moments(truth)
    n = len(nu)
    second = (nu - nu.mean()) ** 2
    square = end.martingale**2 - end.integrated  # E M^2 = E I
    return torch.stack(
        [
            (nu.mean() - mean).abs() / nu.std() * n**0.5,
            (second.mean() - variance).abs() / second.std() * n**0.5,
            square.mean().abs() / square.std() * n**0.5,
        ]
    )


def test_variance_paths_have_the_exact_moments_and_one_per_cent_is_seen():
    assert distances(P).max() < 4
    assert distances(P._replace(sigma=1.01 * P.sigma))[1] > 5


def test_a_path_without_noise_is_refused():
    noise = torch.zeros(4, 8, dtype=F64)
    with pytest.raises(ValueError, match=r"sigma must be positive, got 0\.0"):
        paths.heston(0.04, 0.5, P._replace(sigma=torch.zeros((), dtype=F64)), noise)
    with pytest.raises(ValueError, match="4 kappa theta - sigma"):
        paths.heston(0.04, 0.5, P._replace(sigma=torch.ones((), dtype=F64)), noise)


def test_standard_errors_are_what_repetition_shows():
    """The deviation of 400 estimates is the error that each states, to four of its own errors."""

    def estimate(seed):
        generator = torch.Generator().manual_seed(seed)
        return paths.conditional_call(
            heston.MODEL, 0.0, 0.09, 0.5, P, paths=64, count=4, generator=generator
        )

    found = [torch.stack(c) for c in zip(*map(estimate, range(400)), strict=True)]
    for values, errors in zip(found[:3], found[3:], strict=True):
        stated = errors.square().mean().sqrt()
        assert values.std() / stated == pytest.approx(1.0, abs=4 * (2 * 400) ** -0.5)


def test_conditional_call_shares_paths_along_x():
    """Several moneynesses for each state give what one at a time gives."""
    p = heston.sample_parameters(3, generator=torch.Generator().manual_seed(1))
    x = torch.tensor([[-0.1, 0.0], [0.0, 0.1], [0.2, 0.3]], dtype=F64)
    nu = torch.tensor([0.04, 0.06, 0.1], dtype=F64)

    def price(x, nu, p):
        generator = torch.Generator().manual_seed(2)
        return paths.conditional_call(
            heston.MODEL, x, nu, 0.5, p, paths=64, count=8, generator=generator
        ).price

    together = price(x, nu, p)
    assert together.shape == (3, 2)
    for j in range(2):
        torch.testing.assert_close(together[:, j], price(x[:, j], nu, p))

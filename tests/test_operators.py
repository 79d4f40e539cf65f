"""The operator at its door: Greeks, slopes in every argument, pieces, warnings, bad input."""

import warnings
from dataclasses import replace

import pytest
import torch
import two_factor
from test_jets import nested

from soundgreeks import garch, heston, weights
from soundgreeks.operators import PRESETS, Config, Operator
from soundgreeks.operators.ansatz import ANSATZ
from soundgreeks.training import Phase

F64 = torch.float64
P = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)


def operator_for(**settings):
    return Operator(replace(PRESETS["smoke"], dtype="float64", **settings))


@pytest.fixture(scope="module")
def options():
    p = heston.sample_parameters(40, generator=torch.Generator().manual_seed(5))
    u = torch.rand(3, 40, generator=torch.Generator().manual_seed(6), dtype=F64)
    return -1 + 2 * u[0], 0.02 + 0.3 * u[1], 0.1 + 0.9 * u[2], p


# --- Greeks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["deeponet", "similarity"])
@pytest.mark.parametrize("ansatz", ANSATZ)
def test_all_five_greeks_are_the_derivatives_of_the_price(network, ansatz, options):
    operator = operator_for(network=network, ansatz=ansatz)
    for w in operator.parameters():
        w.data *= 2
    x, nu, tau, p = options
    u = nested(lambda *a: operator.price(*a, p), x, nu, tau)
    found = operator.greeks(x, nu, tau, p)
    e = torch.exp(-x)
    expected = heston.Greeks(u.value, e * u.x, e**2 * (u.xx - u.x), u.nu, -u.tau)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * (1 + b.abs().max()), name
        assert b.abs().max() > 1e-6  # the comparison means something


@pytest.mark.parametrize("ansatz", ["implied", "implied_scaled"])
def test_all_five_greeks_against_the_truth(ansatz, options):
    """Without volatility of variance the anchor is exact, and a silent network leaves it so."""
    operator = operator_for(network="similarity", ansatz=ansatz)
    for w in operator.network.layers[-1].parameters():
        w.data.zero_()
    x, nu, tau, p = options
    p = p._replace(sigma=torch.full_like(p.sigma, 1e-9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = operator.greeks(x, nu, tau, p)
    for name, a, b in zip(found._fields, found, heston.greeks(x, nu, tau, p), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_shipped_greeks_against_the_truth(options):
    operator = weights.load("sound")
    found, true = operator.greeks(*options), heston.greeks(*options)
    for name, bound in dict(price=1e-5, delta=1e-4, gamma=5e-3, vega=1e-2, theta=1e-3).items():
        error = (getattr(found, name) - getattr(true, name)).abs()
        assert error.median() < 0.06 * bound and error.max() < bound, name


def test_price_at_the_strike_has_one_slope():
    operator = weights.load("sound")
    x = torch.zeros(1, dtype=F64, requires_grad=True)
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.0)
    (slope,) = torch.autograd.grad(operator.price(x, 0.04, 0.5, p).sum(), x)
    assert slope.item() == pytest.approx(operator.greeks(0.0, 0.04, 0.5, p).delta.item(), rel=1e-9)
    assert slope.item() == pytest.approx(heston.greeks(0.0, 0.04, 0.5, p).delta.item(), abs=1e-3)


def test_prices_and_greeks_differentiate_in_every_argument(options):
    operator = weights.load("sound")
    leaves = [v[:4].clone().requires_grad_() for v in (*options[:3], *options[3])]

    def price(x, nu, tau, *p):
        return operator.price(x, nu, tau, heston.Parameters(*p))

    def delta(x, nu, tau, *p):
        return operator.greeks(x, nu, tau, heston.Parameters(*p)).delta

    assert torch.autograd.gradcheck(price, leaves, atol=1e-6)
    assert torch.autograd.gradcheck(delta, leaves, atol=1e-5)
    truth = heston.call(*leaves[:3], heston.Parameters(*leaves[3:]))
    for a, b in zip(
        torch.autograd.grad(price(*leaves).sum(), leaves),
        torch.autograd.grad(truth.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)
    assert not operator.price(*(v.detach() for v in leaves[:3]), P).requires_grad
    label = operator.price(0.0, 0.04, 0.5, P)
    (torch.ones(1, dtype=F64, requires_grad=True) * label).sum().backward()  # a plain tensor


# --- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["deeponet", "similarity"])
def test_pieces_change_nothing(network):
    operator = operator_for(network=network)
    x = torch.linspace(-1, 1, 50, dtype=F64)
    three = heston.sample_parameters(3)[:, None]
    for p, at in (
        (P, x), (heston.sample_parameters(50), x), (three, x), (three, x[:1]),
        (heston.sample_parameters(50), x[0]), (heston.sample_parameters(50)[:, None], x[:, None]),
    ):  # fmt: skip
        operator.chunk = 7
        pieces = operator.greeks(at, 0.04, 0.5, p)
        price = operator.price(at, 0.04, 0.5, p)
        operator.chunk = 10_000
        assert price.shape == torch.broadcast_shapes(at.shape, p.shape)
        for a, b in zip(operator.greeks(at, 0.04, 0.5, p), pieces, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(price, pieces.price, rtol=1e-12, atol=1e-14)


def test_no_piece_is_larger_than_asked_and_the_branch_runs_once(monkeypatch):
    operator = operator_for()
    operator.chunk = 20
    sizes, branches = [], []
    on, embed = Operator.on, operator.network.embed

    def watched(self, coordinates, p, embedded=None):
        u = on(self, coordinates, p, embedded)
        sizes.append(u.value.numel())
        return u

    monkeypatch.setattr(Operator, "on", watched)
    monkeypatch.setattr(operator.network, "embed", lambda mu: branches.append(1) or embed(mu))
    operator.greeks(torch.zeros(300, 1, dtype=F64), 0.04, 0.5, P)
    assert max(sizes) <= 20 and sum(sizes) == 300
    sizes.clear(), branches.clear()
    p = heston.sample_parameters(8)[:, None]
    found = operator.greeks(torch.linspace(-1, 1, 100, dtype=F64), 0.04, 0.5, p)
    assert found.price.shape == (8, 100) and len(branches) == 1
    assert len(sizes) > 1 and max(sizes) <= 32 * 20


def test_no_options_no_prices():
    assert operator_for().price(torch.zeros(0), 0.04, 0.5, P).shape == (0,)


# --- ranges --------------------------------------------------------------------------------------


def test_outside_the_range_of_training_it_warns_where_it_was_called():
    operator = operator_for()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator.price(torch.tensor([-2.0, 2.0]), 0.01, 1.0, P)
        operator.to(torch.float32).price(torch.tensor(0.0), 0.4, 0.5, P)
        weights.load("sound").price(0.0, 0.5, 0.0, P)  # exact at maturity
    operator = operator.double()
    for call, message in (
        (lambda: operator.price(0.0, 0.5, 0.5, P), r"nu = 0.5 is outside \[0.01, 0.4\]"),
        (lambda: operator.greeks(0.0, 0.1, 0.5, P._replace(kappa=5.0)), r"kappa = 5 is outside"),
        (lambda: operator.price(0.0, 0.1, 0.5, P._replace(kappa=0.5)), "outside the feller cond"),
        (lambda: weights.load("sound").price(0.0, 1.5, 0.5, P), r"nu = 1.5 is outside"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert caught[0].filename == __file__


def test_each_input_is_rescaled_by_the_range_of_its_name():
    network, domain = operator_for().network, heston.TABLE_I
    corners = torch.tensor([[-1.0], [1.0]], dtype=F64)
    for rescale, names in (
        (network.trunk_scale, ("x", "nu", "tau")),
        (network.branch_scale, heston.Parameters._fields),
    ):
        ends = rescale(torch.tensor([domain[name] for name in names], dtype=F64).T)
        torch.testing.assert_close(ends, corners.expand(2, len(names)), atol=1e-5, rtol=0)


def test_bad_input_is_named():
    operator = operator_for()
    for arguments, message in (
        ((0.0, -0.1, 0.5, P), r"nu must be non-negative, got -0\.1"),
        ((0.0, 0.1, float("nan"), P), "tau must be finite, got nan"),
        ((float("inf"), 0.1, 0.5, P), "x must be finite, got inf"),
        ((0.0, 0.1, 0.5, P._replace(rho=-2.0)), r"rho must be in \[-1, 1\], got -2"),
        ((torch.zeros(3), 0.1, 0.5, heston.sample_parameters(4)), "shapes do not broadcast"),
        ((0.0, (0.1, 0.1), 0.5, P), "state must be"),
    ):
        with pytest.raises(ValueError, match=message):
            operator.greeks(*arguments)
    with pytest.raises(TypeError, match=r"x must be of float32 or float64, got torch\.float16"):
        operator.price(torch.zeros(2).half(), 0.1, 0.5, P)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(phases=()), "phases must be at least one"),
        (dict(seed=-1), "seed must be whole and at least 0, got -1"),
        (dict(points=0), "points must be whole and at least 1"),
        (dict(points=(8, 2.5)), "points must be whole"),
        (dict(width=2.5), "width must be whole"),
        (dict(activation="step"), "activation must be one of"),
        (dict(model="sabr"), r"model must be one of .*heston"),
        (dict(claim="digital"), r"claim must be one of .*put"),
        (dict(lambda_atm=-1.0), "lambda_atm must be finite and non-negative"),
        (dict(edge_share=2), r"edge_share must be in \[0, 1\]"),
        (dict(domain=two_factor.MODEL.domain), "domain must be of"),
        (dict(domain=replace(heston.TABLE_I, where="novikov")), "condition must be one of"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["smoke"], **setting)


def test_a_reversed_range_is_refused():
    with pytest.raises(ValueError, match=r"range of nu must be finite, low <= high, got \(0.4"):
        heston.TABLE_I | {"nu": (0.4, 0.01)}


def test_domain_draws_scales_and_is_stored():
    box = heston.TABLE_I | {"nu": (1e-4, 0.8)}
    assert box["nu"] == (1e-4, 0.8) and box.where == "feller" and hash(box) != hash(heston.TABLE_I)
    assert box.of("rho", "r") == [(-0.95, -0.05), (0.0, 0.08)]
    assert type(box).from_dict(box.to_dict()) == box
    assert box.scale("x", torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2.0, 0.0, 2.0]
    config = Config(model="garch", phases=(Phase("adam", 1),))
    assert config.domain == garch.MODEL.domain and Config.from_dict(config.to_dict()) == config
    p = heston.sample_parameters(50, box | {"rho": (-0.3, -0.2)})
    assert p.rho.min() >= -0.3 and p.rho.max() <= -0.2


def test_several_states_are_a_tuple():
    operator = operator_for(model="two_factor", ansatz="implied", domain=None)
    p = two_factor.MODEL.sample(5, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-0.5, 0.5, 5, dtype=F64)
    state = (0.01 + 0 * x).requires_grad_(), (0.02 + 0 * x).requires_grad_()
    found = operator.greeks(x, state, 0.5, p)
    slopes = torch.autograd.grad(found.price.sum(), state)
    assert len(found.vega) == 2
    for a, b in zip(found.vega, slopes, strict=True):
        torch.testing.assert_close(a, b)

"""Derivatives of the residual in the loss, and the penalty on negative Gammas."""

from dataclasses import replace

import pytest
import torch
import two_factor

from soundgreeks import collocation, equation, evaluation, garch, heston, weights
from soundgreeks.operators import PRESETS, Config, Operator, PricingProblem
from soundgreeks.training import Phase, train

SMOKE = replace(PRESETS["smoke"], dtype="float64")
SINGLE = dict(points=12, atm=6, boundary=4)


def problem_for(**settings):
    return PricingProblem(Operator(replace(SMOKE, **settings)))


def nested(operator, points, row=None):
    """R, R_x and R_xx by nested autograd of the price alone; one parameter vector of a grid."""
    p = points.p if row is None else points.p[row]
    x, nu, tau = (v.clone().requires_grad_() for v in (points.x, points.nu, points.tau))

    def slope(f, v):
        return torch.autograd.grad(f.sum(), v, create_graph=True)[0]

    u = operator.value(x, nu, tau, p)
    u_x, u_nu = slope(u, x), slope(u, nu)
    bent = 0.5 * nu * slope(u_x, x) + p.rho * p.sigma * nu * slope(u_x, nu)
    bent = bent + 0.5 * p.sigma**2 * nu * slope(u_nu, nu)
    drift = (p.r - 0.5 * nu) * u_x + p.kappa * (p.theta - nu) * u_nu
    r = slope(u, tau) - bent - drift + p.r * u
    r_x = slope(r, x)
    return [v.detach() for v in (r, r_x, slope(r_x, x))]


def expected(problem, points):
    """R, s R_x and s^2 R_xx, (P,) or (M, P)."""
    grid = points.grid
    rows = [nested(problem.operator, points, i if grid else None)
            for i in (range(len(points.p.r)) if grid else (0,))]  # fmt: skip
    found = [torch.stack(v) if grid else v[0] for v in zip(*rows, strict=True)]
    s = heston.expected_variance(points.nu, points.tau, points.p).sqrt()
    return [v * s**n for n, v in enumerate(found)]


@pytest.mark.parametrize("points", [12, (3, 5)], ids=["points", "grid"])
@pytest.mark.parametrize("name", ["printed", "smoothed", "anchor", "implied", "smile"])
@pytest.mark.parametrize("step", [0.0, 1e-3], ids=["exact", "differences"])
def test_derivatives_equal_nested_autograd(name, points, step):
    network = "similarity" if name == "smile" else "deeponet"
    shape = dict(ansatz=name, network=network, points=points, atm=0, boundary=0, early=0.1)
    problem = problem_for(sobolev=(0.3, 0.02), sobolev_step=step, **shape)
    ((piece, fixed),) = problem._pieces["physics"]
    assert (fixed is not None) == (name == "anchor" and isinstance(points, tuple))
    wanted = expected(problem, piece)
    damp = (piece.tau / (piece.tau + 0.1)) ** 0.25
    r, *found = problem._with_derivatives(piece, fixed)
    far = (piece.x.abs() > 2e-3 * 3).double()  # no difference across the payoff's kink
    for n, (ours, true) in enumerate(zip(found, wanted[1:], strict=True), 1):
        size, true = float(true.abs().max()), damp * true
        off = ((ours.view(true.shape) - true) * far).abs().max() / size
        assert off < (1e-8 if step == 0 else 1e-4), (n, float(off))
    terms = [float(v.detach().square().mean()) for v in found]
    loss = sum(float(part["physics"].detach()) for part in problem.parts())
    plain = float(equation.physics_loss(r.detach(), 0.1))
    assert loss == pytest.approx(plain + 0.3 * terms[0] + 0.02 * terms[1], rel=1e-12)


def test_the_gradient_equals_that_of_nested_autograd():
    shape = dict(ansatz="smile", network="similarity", points=8, atm=0, boundary=0, lambda_max=0.0)
    problem = problem_for(sobolev=(0.5, 0.25), sobolev_step=0.0, **shape)
    ((piece, _),) = problem._pieces["physics"]
    free = list(problem.operator.parameters())
    loss = sum(sum(part.values()) for part in problem.parts())
    found = torch.autograd.grad(loss, free)

    def by_differences(w, index, h=1e-5):
        values = []
        for sign in (1, -1):
            w.data.reshape(-1)[index] += sign * h
            r, slope, bend = expected(problem, piece)
            values.append(r.square().mean() + 0.5 * slope.square().mean()
                          + 0.25 * bend.square().mean())  # fmt: skip
            w.data.reshape(-1)[index] -= sign * h
        return float(values[0] - values[1]) / (2 * h)

    for w, slope in zip(free, found, strict=True):
        index = int(slope.abs().argmax())
        assert float(slope.reshape(-1)[index]) == pytest.approx(by_differences(w, index), rel=1e-4)


def test_differences_converge_to_the_exact_loss_at_second_order():
    shape = dict(ansatz="implied_scaled", network="similarity", points=64, atm=0, boundary=0)

    def terms(step):
        problem = problem_for(sobolev=(1.0, 1.0), sobolev_step=step, **shape)
        ((piece, fixed),) = problem._pieces["physics"]
        return [v.detach() for v in problem._with_derivatives(piece, fixed)[1:]]

    exact, wide, half = terms(0.0), terms(0.1), terms(0.05)
    for a, b, c in zip(exact, wide, half, strict=True):
        ratio = (b - a).square().mean().sqrt() / (c - a).square().mean().sqrt()
        assert float(ratio) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    "model", [heston.MODEL, garch.MODEL, two_factor.MODEL], ids=lambda m: m.name
)
@pytest.mark.parametrize("points", [(3, 8), 12])
@pytest.mark.parametrize("step", [0.0, 0.1], ids=["exact", "differences"])
@pytest.mark.parametrize("sobolev", [(0.2, 0.0), (0.2, 0.05), (0.0, 0.05)])
def test_residuals_as_vectors_have_the_loss_and_gradient(model, points, step, sobolev):
    problem = problem_for(
        model=model.name, domain=None, ansatz="implied", points=points, atm=6, boundary=4,
        lambda_atm=3.0, sobolev=sobolev, sobolev_step=step, gamma_penalty=0.7, width=8, latent=8,
    )  # fmt: skip
    free = dict(problem.operator.named_parameters())
    loss = sum(sum(part.values()) for part in problem.parts())
    total = torch.zeros((), dtype=torch.float64)
    for function, rows in problem.residuals():
        values = torch.func.vmap(function, (None,) + (0,) * len(rows))(free, *rows)
        total = total + values.square().sum()
    torch.testing.assert_close(total, loss)
    pairs = zip(
        torch.autograd.grad(total, list(free.values())),
        torch.autograd.grad(loss, list(free.values())),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_pieces_and_processes_change_nothing():
    def terms(**settings):
        problem = problem_for(sobolev=(0.2, 0.05), gamma_penalty=1.0, **settings)
        return sum(float(v.detach()) for part in problem.parts() for v in part.values())

    for points in (64, (8, 16)):
        shape = dict(ansatz="anchor", points=points)
        assert terms(chunk=16, **shape) == pytest.approx(terms(**shape), rel=1e-12)


def test_the_penalty_is_on_negative_gammas_alone():
    operator = weights.load("sound_small").double()
    points = collocation.draw(200, generator=torch.Generator().manual_seed(3))
    at = points.x, points.nu, points.tau
    config = replace(operator.config, points=64, gamma_penalty=2.0, dtype="float64")
    problem = PricingProblem(operator, config)
    true = problem._negative_gamma(*at[:1], (points.nu,), points.tau, points.p)
    assert float(true.max()) < 1e-6  # a good operator has none
    rough = Operator(replace(PRESETS["printed"], seed=3)).double()
    gamma = rough.greeks(*at, points.p).gamma
    s = heston.expected_variance(points.nu, points.tau, points.p).sqrt()
    found = PricingProblem(rough)._negative_gamma(points.x, (points.nu,), points.tau, points.p)
    torch.testing.assert_close(found, (-s * gamma).clamp_min(0))
    assert 0.1 < float((found > 0).double().mean()) < 0.9


def test_the_penalty_stands_on_the_points_at_the_money_if_there_are_any():
    def terms(**settings):
        found = {}
        for part in problem_for(**SINGLE | settings).parts():
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + float(value.detach())
        return found

    base, more = terms(), terms(gamma_penalty=3.0)
    assert more["physics"] == base["physics"] and more["atm"] > base["atm"]
    assert terms(gamma_penalty=3.0, atm=0)["physics"] > terms(atm=0)["physics"]
    zero = terms(gamma_penalty=3.0, lambda_atm=0.0)
    assert zero["atm"] == pytest.approx(more["atm"] - base["atm"])


def test_the_penalty_acts_in_the_last_phase_alone():
    phases = (Phase("adam", 2), Phase("adam", 2))
    free, held = problem_for(phases=phases), problem_for(phases=phases, gamma_penalty=3.0)

    def total(problem, number):
        problem.begin(phases[number], number, 0)
        value = sum(float(v.detach()) for part in problem.parts() for v in part.values())
        rows = len([rows for _, rows in problem.residuals()])
        return value, rows

    assert total(held, 0) == total(free, 0)
    (more, rows), (less, fewer) = total(held, 1), total(free, 1)
    assert more > less and rows > fewer


def test_off_by_default_and_stored_configurations_still_load():
    assert Config().sobolev == (0.0, 0.0) and Config().gamma_penalty == 0.0
    problem = problem_for()
    assert problem._near == 1 and problem.order == 0
    points = problem.sets["physics"]
    assert problem._around(points) is points
    before = {k: v for k, v in SMOKE.to_dict().items()
              if k not in ("sobolev", "sobolev_step", "gamma_penalty")}  # fmt: skip
    assert Config.from_dict(before) == SMOKE
    changed = replace(SMOKE, sobolev=(0.5, 0.25), sobolev_step=0.0)
    assert Config.from_dict(changed.to_dict()) == changed


@pytest.mark.parametrize(
    "wrong", [(1.0,), (1.0, -1.0), (float("inf"), 0.0), 1.0, (1.0, 0.0, 0.0), ("a", 0.0)]
)
def test_weights_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"^sobolev must be a pair of finite and non-negative"):
        Config(sobolev=wrong)


@pytest.mark.parametrize("name", ["sobolev_step", "gamma_penalty"])
def test_other_numbers_out_of_range(name):
    with pytest.raises(ValueError, match=f"^{name} must be finite and non-negative"):
        Config(**{name: -0.1})


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "gauss-newton"])
def test_every_kind_of_optimiser_lowers_it(optimizer):
    problem = problem_for(
        network="similarity", ansatz="implied_scaled", width=8, points=64, atm=0, boundary=0,
        boundary_second=0, sobolev=(0.2, 0.05), gamma_penalty=1.0,
    )  # fmt: skip

    def loss():
        return sum(float(v.detach()) for part in problem.parts() for v in part.values())

    before = loss()
    train(problem.operator, problem, [Phase(optimizer, 30 if optimizer != "gauss-newton" else 5)])
    assert loss() < 0.9 * before


def test_no_derivative_of_the_residual_sees_the_kink():
    """A printed price with an exact residual of zero off the strike: the payoff, for r = 0."""
    operator = Operator(replace(SMOKE, ansatz="printed"))
    with torch.no_grad():
        last = operator.network.trunk.layers[-1]
        last.weight.zero_()
        last.bias.fill_(0.0)
    points = collocation.draw(50, generator=torch.Generator().manual_seed(1))
    p = points.p._replace(r=torch.zeros_like(points.p.r))
    points = collocation.Points(points.x, points.state, points.tau, p)
    problem = PricingProblem(operator, replace(SMOKE, sobolev=(1.0, 1.0), sobolev_step=0.0))
    slopes = problem._with_derivatives(points, None)[1:]
    assert max(float(v.detach().abs().max()) for v in slopes) < 1e-12
    exact = heston.call(points.x, points.nu, points.tau, p)
    found = operator.value(points.x, points.state, points.tau, p).detach()
    assert float((found - exact).abs().max()) > 0.1


def test_a_fresh_loss_can_be_asked_for():
    shape = dict(ansatz="implied_scaled", network="similarity", sampling="fresh", points=32)
    operator = problem_for(atm=0, sobolev=(0.2, 0.05), gamma_penalty=1.0, **shape).operator
    found = evaluation.fresh_loss(operator, points=128)
    assert found["physics"] > 0

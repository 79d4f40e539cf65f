"""Models and operators on every device there is, and on an emulated second one."""

from dataclasses import replace

import pytest
import second_device
import torch

from soundgreeks import collocation, equation, evaluation, garch, heston, paths, weights
from soundgreeks.operators import PRESETS, Operator, PricingProblem
from soundgreeks.training import Phase, train

F64 = torch.float64
P = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)


@pytest.fixture(params=["far", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda":
        yield torch.device("cuda")
    else:
        with second_device.second_device() as (far, _):
            yield far


def options(device="cpu"):
    p = heston.sample_parameters(20, generator=torch.Generator().manual_seed(5))
    u = torch.rand(3, 20, generator=torch.Generator().manual_seed(6), dtype=F64)
    x, nu, tau = (v.to(device) for v in (-1 + 2 * u[0], 0.02 + 0.3 * u[1], 0.1 + 0.9 * u[2]))
    return x, nu, tau, p.map(lambda v: v.to(device))


def same(a, b, device):
    assert a.device.type == torch.device(device).type
    torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["sound", "paper_implied"])
def test_an_operator_takes_arguments_from_anywhere(device, name):
    here, there = weights.load(name), weights.load(name).to(device)
    truth = here.greeks(*options())
    for arguments in (options(), options(device)):
        for a, b in zip(there.greeks(*arguments), truth, strict=True):
            same(a, b, device)
        same(there.price(*arguments), truth.price, device)
    same(there.price(0.0, 0.04, 0.5, P), here.price(0.0, 0.04, 0.5, P), device)
    x, nu, _, p = options()
    grid = p[:4, None]
    same(there.price(x, nu, 0.5, grid), here.price(x, nu, 0.5, grid), device)


def test_slopes_by_parameters_there(device):
    here, there = weights.load("sound"), weights.load("sound").to(device)
    slopes = []
    for operator, place in ((here, "cpu"), (there, device)):
        x, nu, tau, p = options(place)
        p = p.map(lambda v: v.clone().requires_grad_())
        slopes.append(torch.autograd.grad(operator.price(x, nu, tau, p).sum(), tuple(p)))
    for a, b in zip(slopes[1], slopes[0], strict=True):
        same(a, b, device)


def test_arguments_on_two_devices_are_one_clear_error(device):
    x, nu, tau, p = options()
    with pytest.raises(ValueError, match="nu must be on the device of x"):
        heston.call(x, nu.to(device), tau, p)


def test_evaluation_judges_an_operator_there(device):
    """Of data on either device; the truth is computed where the data are to lie."""
    here = weights.load("sound")
    there = weights.load("sound").to(device)
    data = evaluation.draw(1, 200)
    expected, shape = evaluation.errors(here, data), evaluation.curves(here, 1, 5).statistics()
    for place in ("cpu", device):
        found = evaluation.errors(there, evaluation.draw(1, 200, device=place))
        for row, values in expected.items():
            assert found[row] == pytest.approx(values, rel=1e-6, abs=1e-9), row
    assert evaluation.curves(there, 1, 5).statistics() == pytest.approx(shape, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("ansatz", ["printed", "anchor", "implied"])
def test_points_residuals_and_training_there(device, ansatz):
    config = replace(PRESETS["smoke"], ansatz=ansatz, dtype="float64", phases=(
        Phase("adam", 6), Phase("soap", 3), Phase("lbfgs", 20)))  # fmt: skip
    losses = []
    for place in ("cpu", device):
        operator = Operator(config).to(place)
        losses.append(train(operator, PricingProblem(operator), config.phases)["loss"])
        assert operator.device.type == torch.device(place).type
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_generators_of_the_device_draw_points(device):
    generator = torch.Generator(device).manual_seed(0)
    points = collocation.draw(30, edge_share=0.5, generator=generator)
    more = collocation.draw_similar(30, generator=generator)
    scores = torch.rand(30, generator=torch.Generator().manual_seed(1))
    renewed = collocation.refine(points, more, scores, 5, generator=generator)
    assert (renewed.x != points.x).sum() == 5
    chosen = collocation.resample_proportionally(points, scores.double(), 7, generator=generator)
    assert len(chosen.x) == 7
    there = points.to(device=device)
    r = equation.anchor_residual(there.x, there.state, there.tau, there.p)
    same(r, equation.anchor_residual(points.x, points.state, points.tau, points.p), device)


def test_simulations_there(device):
    p = garch.Parameters(*P)
    x = torch.zeros(2, dtype=F64, device=device)
    generator = torch.Generator(device).manual_seed(0)
    found = paths.conditional_call(garch.MODEL, x, 0.04, 0.5, p, paths=256, count=8,
                                   generator=generator)  # fmt: skip
    assert found.price.device.type == torch.device(device).type
    assert 0.05 < float(found.price[0]) < 0.09


def test_the_formula_there(device):
    for a, b in zip(heston.greeks(*options(device)), heston.greeks(*options()), strict=True):
        same(a, b, device)

"""Taylor channels against nested automatic differentiation in float64."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import Jet, collocation, heston, jets
from soundgreeks.arithmetic.jets import Stack
from soundgreeks.operators import PRESETS, Operator, PricingProblem
from soundgreeks.operators.ansatz import ANSATZ

F64 = torch.float64

# torch's own forward mode imports what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def nested(function, x, nu, tau) -> Jet:
    """The seven channels of ``function(x, nu, tau)``, for a batch, by autograd of autograd."""
    x, nu, tau = (v.detach().clone().requires_grad_() for v in (x, nu, tau))

    def d(a, b):
        found = torch.autograd.grad(a.sum(), b, create_graph=True, materialize_grads=True)
        return found[0]

    u = function(x, nu, tau)
    ux, unu, utau = d(u, x), d(u, nu), d(u, tau)
    second = dict(xx=d(ux, x), xnu=d(ux, nu), nunu=d(unu, nu))
    return Jet(u, x=ux, nu=unu, tau=utau, **second)


CHANNELS = ("value", "x", "nu", "tau", "xx", "xnu", "nunu")


def channels(u: Jet):
    return [u.value, *(u.part(name) for name in CHANNELS[1:])]


def assert_same(a: Jet, b: Jet, tolerance=1e-10):
    for name, p, q in zip(CHANNELS, channels(a), channels(b), strict=True):
        scale = 1 + q.abs().max()
        assert ((p - q).abs() <= tolerance * scale).all(), name


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "sqrt", "tanh", "sigmoid", "softplus"])
def test_elementary_functions(name):
    x, nu, tau = 0.5 + torch.rand(3, 20, dtype=F64)

    def inner(x, nu, tau):
        return x * x * nu + nu * nu * tau + x * tau

    plain = getattr(torch, name, torch.nn.functional.softplus)
    found = getattr(jets, name)(inner(*jets.coordinates(x, nu, tau)))
    assert_same(found, nested(lambda *a: plain(inner(*a)), x, nu, tau))
    assert torch.equal(getattr(jets, name)(x), plain(x))  # of tensors torch's own


def test_arithmetic():
    x, nu, tau = 0.5 + torch.rand(3, 20, dtype=F64)

    def formula(x, nu, tau):
        return 2 - x * nu + (nu - tau * x) * -0.5 + (1 - tau * tau) / 4 + nu * x * nu

    found = formula(*jets.coordinates(x, nu, tau))
    assert_same(found, nested(formula, x, nu, tau))
    with pytest.raises(AttributeError, match="no derivative 'rho'"):
        _ = found.rho


def test_composition_of_two():
    x, nu, tau = 0.5 + torch.rand(3, 20, dtype=F64)
    a, b = x * nu, nu * nu + tau
    jx, jnu, jtau = jets.coordinates(x, nu, tau)
    f = (a.sin() * b.exp(), a.cos() * b.exp(), a.sin() * b.exp())
    f += (-a.sin() * b.exp(), a.cos() * b.exp(), a.sin() * b.exp())
    found = jets.compose(f, jx * jnu, jnu * jnu + jtau)
    expected = nested(lambda x, nu, t: torch.sin(x * nu) * torch.exp(nu * nu + t), x, nu, tau)
    assert_same(found, expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", jets.ACTIVATIONS)
def test_layer_has_the_right_backward(name, residual):
    """Backward, of its own backward, forward, and on batches: by differences and by autograd."""
    h, weight, bias = (torch.randn(s, dtype=F64) for s in ((7, 3, 4), (4, 4), (4,)))
    arguments = [a.requires_grad_() for a in (h, weight, bias)]

    def layer(h, weight, bias):
        return jets.layer(
            Stack(h, CHANNELS[1:], jets.ONE_FACTOR), weight, bias, name, residual
        ).data

    check = dict(check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradcheck(layer, arguments, **check)
    assert torch.autograd.gradgradcheck(layer, arguments)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", jets.ACTIVATIONS)
def test_forward_and_backward_of_a_layer_agree(name, residual):
    """Forward mode as written out; `gradcheck` above detaches, and then plain operations do it."""
    generator = torch.Generator().manual_seed(7)
    shapes = (7, 3, 4), (4, 4), (4,)
    point, along = ([torch.randn(s, generator=generator, dtype=F64) for s in shapes] for _ in "ab")
    rows, (_, derivatives) = Stack(None, CHANNELS[1:], jets.ONE_FACTOR).rows, jets.ACTIVATIONS[name]

    def layer(*arguments):
        return jets._Layer.apply(*arguments, derivatives, residual, rows)[0]

    _, slope = torch.func.jvp(layer, tuple(point), tuple(along))
    for channel in range(7):
        leaves = [a.clone().requires_grad_() for a in point]
        gradient = torch.autograd.grad(layer(*leaves)[channel].sum(), leaves)
        expected = sum((a * b).sum() for a, b in zip(gradient, along, strict=True))
        torch.testing.assert_close(slope[channel].sum(), expected, rtol=1e-11, atol=1e-11)


def test_jacobian_of_residuals_by_weights():
    """Rows by vmap over points and by a batched backward pass; both against one at a time."""
    operator = Operator(replace(PRESETS["smoke"], network="similarity", dtype="float64"))
    points = collocation.draw(6, generator=torch.Generator().manual_seed(3))
    weights = dict(operator.named_parameters())
    problem = PricingProblem(operator, replace(PRESETS["smoke"], points=6, atm=0, boundary=0))
    r = problem.residual(points)
    one_by_one = [torch.autograd.grad(v, tuple(weights.values()), retain_graph=True) for v in r]
    eye = torch.eye(6, dtype=F64)
    batched = torch.autograd.grad(r, tuple(weights.values()), eye, is_grads_batched=True)
    problem.sets["physics"] = points
    problem._rebuild()
    ((function, rows),) = problem.residuals()
    by_rows = torch.func.vmap(torch.func.grad(function), (None,) + (0,) * len(rows))(weights, *rows)
    slope = torch.sqrt(1 + 0.1 * r * r) + 0.1 * r * r / torch.sqrt(1 + 0.1 * r * r)
    for i, (name, b) in enumerate(zip(weights, batched, strict=True)):
        expected = torch.stack([row[i] for row in one_by_one])
        torch.testing.assert_close(b, expected, rtol=1e-9, atol=1e-12)
        scale = (slope / 6**0.5).view(-1, *[1] * (b.ndim - 1))
        torch.testing.assert_close(by_rows[name], scale * expected, rtol=1e-9, atol=1e-12)


def test_one_order_more_along_a_direction():
    """The x-derivative of all channels, forward; and of a residual, backward, with its gradient."""
    operator = Operator(replace(PRESETS["smoke"], ansatz="implied", dtype="float64"))
    points = collocation.draw(5, generator=torch.Generator().manual_seed(3))
    x, nu, tau, p = points.x, points.nu, points.tau, points.p

    def channel(x, name):
        return operator.jet(x, nu, tau, p).part(name)

    _, third = torch.func.jvp(lambda x: channel(x, "xx"), (x,), (torch.ones_like(x),))
    h = 1e-5
    expected = (channel(x + h, "xx") - channel(x - h, "xx")) / (2 * h)
    torch.testing.assert_close(third, expected, rtol=1e-5, atol=1e-7)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(channel(leaf, "xx").sum(), leaf, create_graph=True)
    torch.testing.assert_close(slope, third)
    weights = list(operator.parameters())
    found = torch.autograd.grad(slope.sum(), weights, allow_unused=True)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in found) > 10


CASES = [(n, a) for n in ("deeponet", "similarity") for a in ANSATZ]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_operator_equals_nested_autograd(network, name):
    operator = Operator(replace(PRESETS["smoke"], network=network, ansatz=name, dtype="float64"))
    for w in operator.parameters():  # corrections of order one, not those of a fresh network
        w.data *= 2
    points = collocation.draw(
        64, domain=heston.TABLE_I | {"tau": (1e-3, 1)}, generator=torch.Generator().manual_seed(1)
    )
    arguments = points.x, points.nu, points.tau
    found = operator.jet(*arguments, points.p)
    expected = nested(lambda *a: operator.value(*a, points.p), *arguments)
    assert_same(found, expected)


def test_gradient_in_the_weights_equals_nested_autograd():
    operator = Operator(replace(PRESETS["smoke"], dtype="float64"))
    points = collocation.draw(32, generator=torch.Generator().manual_seed(2))
    arguments = points.x, points.nu, points.tau

    def gradient(jet):
        total = sum((c * c).sum() for c in channels(jet))
        return torch.autograd.grad(total, list(operator.parameters()))

    found = gradient(operator.jet(*arguments, points.p))
    expected = gradient(nested(lambda *a: operator.value(*a, points.p), *arguments))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_values_alone_take_one_channel():
    x = torch.rand(5, dtype=F64)
    assert jets.stack([Jet(x), Jet(x * x)]).data.shape == (1, 5, 2)
    assert jets.stack(jets.coordinates(x, x, x)).data.shape == (7, 5, 3)

"""Taylor channels against nested automatic differentiation in float64."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import collocation, jets
from soundgreeks.arithmetic.jets import Jet
from soundgreeks.operators import PRESETS, Operator
from soundgreeks.operators.ansatz import ANSATZ

F64 = torch.float64


def nested(function, x, nu, tau) -> Jet:
    """The seven channels of ``function(x, nu, tau)``, for a batch, by autograd of autograd."""
    x, nu, tau = (v.detach().clone().requires_grad_() for v in (x, nu, tau))

    def d(a, b):
        found = torch.autograd.grad(a.sum(), b, create_graph=True, materialize_grads=True)
        return found[0]

    u = function(x, nu, tau)
    ux, unu, utau = d(u, x), d(u, nu), d(u, tau)
    return Jet(u, ux, unu, utau, d(ux, x), d(ux, nu), d(unu, nu))


def assert_same(a: Jet, b: Jet, tolerance=1e-10):
    for name, p, q in zip(jets.CHANNELS, a, b, strict=True):
        scale = 1 + q.abs().max()
        assert ((p - q).abs() <= tolerance * scale).all(), name


@pytest.mark.parametrize(
    "name", ["exp", "log", "sqrt", "reciprocal", "tanh", "sigmoid", "softplus"]
)
def test_elementary_functions(name):
    x, nu, tau = 0.5 + torch.rand(3, 20, dtype=F64)

    def inner(x, nu, tau):
        return x * x * nu + nu * nu * tau + x * tau

    plain = {
        "reciprocal": torch.reciprocal, "softplus": torch.nn.functional.softplus
    }.get(name) or getattr(torch, name)  # fmt: skip
    found = getattr(jets, name)(inner(*jets.coordinates(x, nu, tau)))
    assert_same(found, nested(lambda *a: plain(inner(*a)), x, nu, tau))


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
    h, weight, bias = (torch.randn(s, dtype=F64) for s in ((7, 3, 4), (4, 4), (4,)))
    arguments = [a.requires_grad_() for a in (h, weight, bias)]
    assert torch.autograd.gradcheck(lambda *a: jets.layer(*a, name, residual), arguments)


def test_second_backward_is_refused():
    h, weight = torch.randn(7, 3, 4, dtype=F64, requires_grad=True), torch.randn(4, 4, dtype=F64)
    out = jets.layer(h, weight, torch.zeros(4, dtype=F64), "gelu")
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(out.sum(), h, create_graph=True)


CASES = [("deeponet", a, f) for a in ANSATZ for f in ("plain", "scales")]
CASES += [("similarity", a, "plain") for a in ANSATZ]


@pytest.mark.parametrize(("network", "name", "features"), CASES)
def test_operator_equals_nested_autograd(network, name, features):
    config = replace(
        PRESETS["smoke"], network=network, ansatz=name, features=features, dtype="float64"
    )
    operator = Operator(config)
    for w in operator.parameters():  # corrections of order one, not those of a fresh network
        w.data *= 2
    points = collocation.draw(64, tau=(1e-3, 1), generator=torch.Generator().manual_seed(1))
    arguments = points.x, points.nu, points.tau
    found = operator.jet(*arguments, points.p)
    expected = nested(lambda *a: operator.value(*a, points.p), *arguments)
    assert_same(found, expected)


def test_gradient_in_the_weights_equals_nested_autograd():
    operator = Operator(replace(PRESETS["smoke"], dtype="float64"))
    points = collocation.draw(32, generator=torch.Generator().manual_seed(2))
    arguments = points.x, points.nu, points.tau

    def gradient(jet):
        total = sum((c * c).sum() for c in jet)
        return torch.autograd.grad(total, list(operator.parameters()))

    found = gradient(operator.jet(*arguments, points.p))
    expected = gradient(nested(lambda *a: operator.value(*a, points.p), *arguments))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_values_alone_take_one_channel():
    x = torch.rand(5, dtype=F64)
    assert jets.stack([Jet(x), Jet(x * x)]).shape == (1, 5, 2)
    assert jets.stack(jets.coordinates(x, x, x)).shape == (7, 5, 3)

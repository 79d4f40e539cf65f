"""Multilayer perceptrons and the DeepONet, on values and on jets."""

import pytest
import torch

from soundgreeks import jets
from soundgreeks.operators.networks import MLP, DeepONet, plain

F64 = torch.float64


def test_mlp_is_what_it_says():
    net = MLP(3, 2, width=5, hidden=3, activation="gelu").double()
    h = torch.randn(7, 3, dtype=F64)
    a, b, c, last = net.layers
    gelu = torch.nn.functional.gelu
    expected = gelu(a(h))
    expected = expected + gelu(b(expected))
    expected = expected + gelu(c(expected))
    torch.testing.assert_close(net(h), last(expected))
    plain = MLP(3, 2, width=5, hidden=2, activation="silu", residual=False).double()
    sequential = torch.nn.Sequential(
        plain.layers[0], torch.nn.SiLU(), plain.layers[1], torch.nn.SiLU(), plain.layers[2]
    )
    torch.testing.assert_close(plain(h), sequential(h))


def test_plain_is_a_sequence_of_linear_layers():
    network = plain(3, 5, 2, 1, activation=torch.nn.Tanh)
    kinds = [type(m).__name__ for m in network]
    assert kinds == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert [m.weight.shape for m in network[::2]] == [(5, 3), (2, 5), (1, 2)]
    for sizes in ((3,), (3, 0, 1)):
        with pytest.raises(ValueError, match="sizes must be at least two"):
            plain(*sizes)


def test_deeponet_grid_equals_points_with_their_own_parameters():
    net = DeepONet([(0, 1)] * 2, [(-1, 1)] * 3, latent=6, width=8, hidden=2).double()
    mu, (x, nu, tau) = torch.rand(4, 2, dtype=F64), torch.rand(3, 5, dtype=F64)
    grid = net.jet(mu[:, None], jets.coordinates(x, nu, tau))
    rows = [net.jet(m.expand(5, 2), jets.coordinates(x, nu, tau)) for m in mu]
    for name in ("value", *grid.parts):
        expected = torch.stack([getattr(row, name) for row in rows])
        torch.testing.assert_close(getattr(grid, name), expected)


def test_inputs_are_rescaled_to_the_unit_interval():
    net = DeepONet([(0.5, 3.0)], [(0.01, 0.40)], width=4, hidden=1, latent=2).double()
    ends = net.trunk_scale(torch.tensor([[0.01], [0.40]], dtype=F64))
    torch.testing.assert_close(ends, torch.tensor([[-1.0], [1.0]], dtype=F64), atol=1e-6, rtol=0)


def test_each_input_has_a_range_of_its_own():
    net = DeepONet([(0.5, 3.0), (-1.0, 0.0)], [(-2.0, 2.0), (0.0, 1.0), (0.01, 0.4)], width=4)
    corners = torch.tensor([[-1.0], [1.0]])
    for rescale, ranges in (
        (net.branch_scale, [(0.5, 3.0), (-1.0, 0.0)]),
        (net.trunk_scale, [(-2.0, 2.0), (0.0, 1.0), (0.01, 0.4)]),
    ):
        ends = rescale(torch.tensor(ranges).T)
        torch.testing.assert_close(ends, corners.expand(2, len(ranges)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("argument", ["width", "hidden", "n_in"])
def test_sizes_below_one_are_named(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        MLP(**dict(n_in=1, n_out=1) | {argument: 0})
    with pytest.raises(ValueError, match="activation must be in"):
        MLP(1, 1, activation="step")

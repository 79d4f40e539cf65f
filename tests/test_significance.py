"""Significance and pruning: the paper's example digit by digit, bounds, removal, rank order."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from soundgreeks import significance
from soundgreeks.arithmetic.intervals import ACTIVATIONS, Interval, forward, trace
from soundgreeks.pruning.significance import COMPENSATIONS


def mlp(*sizes, activation=nn.SiLU, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    modules = []
    for a, b in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        modules += [nn.Linear(a, b, dtype=dtype), activation()]
    return nn.Sequential(*modules[:-1])


@pytest.fixture
def example():
    return significance.example()[0]


@pytest.fixture
def box():
    return significance.example()[1]


def unit_box(n, dtype=torch.float64):
    return Interval(-torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype))


def test_significances_of_the_papers_example(example, box):
    first, second = significance.of_nodes(example, box)
    assert first.tolist() == pytest.approx([1.02, 1.31], abs=0.005)  # as printed
    assert second.tolist() == pytest.approx([0.21, 2.12], abs=0.005)
    # By hand: width times slope, both printed in Table 1 to three and four digits.
    assert first[0] == pytest.approx((1.6934 - 0.3151) * 0.7421, abs=2e-4)
    assert second[1] == pytest.approx((2.3205 - 0.7664) * 1.3663, abs=2e-4)
    # The network is affine here, so an input's share is its width times its one slope.
    (weights,) = torch.autograd.functional.jacobian(example, box.mid)
    assert significance.of_inputs(example, box).tolist() == pytest.approx(
        (9 * weights.abs()).tolist(), rel=1e-12
    )


TABLE_1 = {  # as printed; the adjoint trace prints points
    "t0": ["0.12544 1.2544", "0.0277 0.277", "0.1121 1.1213", "-0.023 -0.002"],
    "k0": ["0.315 1.693", "0.368 1.397"],
    "n0": ["0.3151 1.6934", "0.3677 1.3974"],
    "t1": ["0.0496 0.2665", "0.098 0.3725", "0.1556 0.8361", "0.3119 1.1854"],
    "k1": ["0.241 0.733", "0.766 2.321"],
    "n1": ["0.241 0.733", "0.7664 2.3205"],
    "t2": ["0.1034 0.3141", "1.0472 3.1706"],
    "y": ["1.369 3.703"],
    "n0_bar": ["0.7421 0.7421", "1.2733 1.2733"],
    "n1_bar": ["0.4287 0.4287", "1.3663 1.3663"],
}


def test_table_1_to_every_printed_digit(example, box):
    t = trace(example, box)
    weights = [m.weight.detach() for m in example[::2]]
    ours = {"y": t.k[2], "n0_bar": t.n_bar[1][0], "n1_bar": t.n_bar[2][0]}
    for i in range(3):
        ours[f"t{i}"] = (t.n[i] * weights[i]).reshape(-1)
        if i < 2:
            ours[f"k{i}"], ours[f"n{i}"] = t.k[i], t.n[i + 1]
    for name, rows in TABLE_1.items():
        for j, row in enumerate(rows):
            for printed, bound in zip(
                row.split(), (ours[name].lo[j], ours[name].hi[j]), strict=True
            ):
                digits = len(printed.split(".")[1])
                assert f"{bound:.{digits}f}" == f"{float(printed):.{digits}f}", (name, j)


def test_removing_the_insignificant_node(example, box):
    smaller = significance.prune(example, keep=[2, 1], box=box, compensation="midpoint")
    assert smaller[2].weight.tolist() == [[0.4937481, 0.8482953]]
    t20 = (trace(example, box).n[2][0] * 0.4286991).mid  # Table 1's [t]_2,0
    assert smaller[4].bias.item() == pytest.approx(0.2184 + t20.item())
    assert smaller[4].bias.item() == pytest.approx(0.2184 + (0.1034 + 0.3141) / 2, abs=1e-4)
    assert example[2].weight.shape == (2, 2)  # the original is as it was


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_input_moves_the_output_by_more_than_the_significance(activation):
    network = mlp(2, 6, 5, 1, activation=activation)
    box = unit_box(2)
    x = torch.rand(500, 2).double() * 2 - 1
    scores = significance.of_nodes(network, box)
    for layer, n in enumerate(significance.hidden_values(network, x)):
        tail = network[2 * layer + 2 :]
        for i in range(n.shape[1]):  # any value of the node beside any values of the others
            lowest, highest = n.clone(), n.clone()
            lowest[:, i], highest[:, i] = n[:, i].min(), n[:, i].max()
            assert (tail(highest) - tail(lowest)).abs().max() <= scores[layer][i]
    # More boxes only tighten it, and never below what data show.
    for one, many, seen in zip(
        scores,
        significance.of_nodes(network, box, 64),
        significance.of_data(network, x),
        strict=True,
    ):
        assert (seen <= many * (1 + 1e-12)).all() and (many <= one * (1 + 1e-12)).all()


def test_cells_given_equal_cells_cut():
    network, box = mlp(3, 6, 5, 2), unit_box(3)
    cut = significance.cells_of(network, box, 512)
    ours = significance.of_nodes(network, box, 512)
    given = significance.of_nodes(network, cut)
    assert all(torch.equal(a, b) for a, b in zip(ours, given, strict=True))
    t = trace(network, cut)  # all at once, without chunks
    for score, n, bar in zip(ours, t.n[1:], t.n_bar[1:], strict=True):
        by_hand = (n.hi.amax(0) - n.lo.amin(0)) * bar.mag.sum(-2).amax(0)
        assert torch.allclose(score, by_hand, rtol=1e-12)


def test_the_influential_input_is_cut():
    network = mlp(3, 6, 1)
    network[0].weight.data[:, 1] *= 100.0
    cut = significance.cells_of(network, unit_box(3), 16)
    assert [len(torch.unique(cut.lo[:, j])) for j in range(3)] == [1, 16, 1]


def test_kd_cells_hold_the_data():
    data = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double()
    cells = significance.kd_cells(data, 64)
    assert cells.shape == (64, 3)
    inside = (cells.lo[:, None] <= data) & (data <= cells.hi[:, None])
    assert (inside.all(-1).sum(0) >= 1).all()  # every point in some cell
    assert inside.all(-1).sum(1).min() >= 15 and inside.all(-1).sum(1).max() <= 16
    long = significance.kd_cells(data * torch.tensor([1.0, 1.0, 100.0]), 32)
    assert torch.unique(long.lo[:, 2]).numel() == 32  # the widest coordinate is cut, and cut again


def test_dead_and_duplicate_nodes_are_pruned_without_loss():
    network = mlp(3, 8, 8, 1)
    network[0].weight.data[2], network[0].bias.data[2] = 0.0, 0.7  # a constant
    network[4].weight.data[0, 5] = 0.0  # a node nobody hears
    scores = significance.of_nodes(network, unit_box(3))
    assert scores[0].argmin() == 2 and scores[0][2] < 1e-12
    assert scores[1].argmin() == 5 and scores[1][5] < 1e-12
    x = torch.randn(200, 3).double()
    for compensation in ("midpoint", "averaged", "mean"):
        smaller = significance.prune(
            network, [7, 7], box=unit_box(3), splits=4, compensation=compensation
        )
        assert torch.allclose(smaller(x), network(x), atol=1e-12)
    bare = significance.prune(network, [7, 7], box=unit_box(3), compensation="none")
    assert not torch.allclose(bare(x), network(x), atol=1e-3)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_stand_ins(compensation):
    network, box = mlp(3, 8, 8, 1), unit_box(3)
    data = torch.rand(2000, 3).double()
    got = significance.stand_ins(network, compensation, box=box, splits=16, data=data)
    expected = {
        "midpoint": lambda: [n.mid for n in trace(network, box).n[1:]],
        "averaged": lambda: [
            n.mid.mean(0) for n in trace(network, significance.cells_of(network, box, 16)).n[1:]
        ],
        "mean": lambda: [n.mean(0) for n in significance.hidden_values(network, data)],
        "none": lambda: [torch.zeros(8).double()] * 2,
    }[compensation]()
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    smaller = significance.prune(
        network, [5, 4], box=box, splits=16, compensation=compensation, data=data
    )
    # The next layer sees every removed node as its stand-in.
    goes = significance.of_nodes(network, box, 16)[0].topk(3, largest=False).indices
    held = significance.hidden_values(network, data)[0]
    held[:, goes] = got[0][goes]
    after = network[2](held)[
        :, significance.of_nodes(network, box, 16)[1].topk(4).indices.sort()[0]
    ]
    ours = smaller[2](smaller[1](smaller[0](data)))
    assert torch.allclose(ours, after, atol=1e-12)


def test_iterative_pruning_retrains_after_every_removal():
    network, seen = mlp(3, 16, 16, 16, 1), []

    def retrain(smaller, layer):
        seen.append((layer, [m.out_features for m in smaller[::2]][:-1]))
        smaller[0].bias.data += 1e-3

    result = significance.prune_iteratively(
        network, [3, 1, 16], box=unit_box(3), retrain=retrain, compensation="none"
    )
    assert [m.out_features for m in result[::2]] == [3, 1, 16, 1]
    assert seen[:3] == [(0, [8, 16, 16]), (1, [8, 8, 16]), (0, [4, 8, 16])]
    assert seen[-1][1] == [3, 1, 16] and len(seen) == 7
    untouched = significance.prune_iteratively(
        network, [16, 16, 16], box=unit_box(3), retrain=retrain
    )
    assert untouched is network
    by_size = significance.prune_iteratively(
        network, [4, 4, 4], box=unit_box(3), retrain=lambda *_: None, factor=0.25,
        score=significance.magnitude, compensation="none",
    )  # fmt: skip
    best = significance.magnitude(network)[0].topk(4).indices.sort().values
    assert torch.equal(by_size[0].weight, network[0].weight[best])


def test_removing_a_layer_that_is_a_line():
    network = mlp(3, 6, 5, 4, 2, activation=nn.ReLU)
    x = torch.rand(300, 3).double()
    for layer in range(3):
        network[2 * layer].bias.data += 50.0  # every ReLU of it open
        smaller = significance.remove_layer(network, layer, x)
        assert len(smaller) == 5 and torch.allclose(smaller(x), network(x), rtol=1e-9)
        network[2 * layer].bias.data -= 50.0
    bent = mlp(3, 6, 5, 1)
    smaller = significance.remove_layer(bent, 1, x)
    assert (smaller(x) - bent(x)).square().mean() < 0.1 * bent(x).var()


def test_ablation_cost_by_hand():
    network, x = mlp(3, 6, 5, 1), torch.randn(100, 3).double()
    cost = significance.ablation_cost(network, x)
    n = significance.hidden_values(network, x)[1]
    by_hand = network[4].weight[0].abs() * n.std(0, correction=0)  # the last layer is linear
    assert torch.allclose(cost[1], by_hand.detach(), rtol=1e-10)
    span = network[4].weight[0].abs() * (n.amax(0) - n.amin(0))
    assert torch.allclose(significance.of_data(network, x)[1], span.detach(), rtol=1e-10)
    assert all((a <= s).all() for a, s in zip(cost, significance.of_data(network, x), strict=True))


def by_hand():
    """2-2-2-1 with weights whose norms one can see."""
    network = mlp(2, 2, 2, 1, activation=nn.ReLU).requires_grad_(False)
    for layer, rows in zip(
        network[::2], ([[3, 4], [0, 5]], [[1, 0], [2, 2]], [[6, 8]]), strict=True
    ):
        layer.weight.copy_(torch.tensor(rows))
        layer.bias.zero_()
    return network


def test_magnitude_is_incoming_times_outgoing():
    first, second = significance.magnitude(by_hand())
    assert first.tolist() == pytest.approx([5 * 5**0.5, 5 * 2])  # rows of W1, columns of W2
    assert second.tolist() == pytest.approx([1 * 6, 8**0.5 * 8])


def test_significance_by_hand_with_cells_and_a_closed_node():
    """On [0, 1]^2 all is open: slopes are products of weights, widths sums of them."""
    box = Interval(torch.zeros(2).double(), torch.ones(2).double())
    first, second = significance.of_nodes(by_hand(), box)
    assert first.tolist() == pytest.approx([7 * 22, 5 * 16])  # 1*6 + 2*8 and 2*8
    assert second.tolist() == pytest.approx([7 * 6, 24 * 8])
    assert significance.of_inputs(by_hand(), box).tolist() == pytest.approx([66, 168])
    # One cell where the first node is shut, one where it is open: the larger slope counts, once.
    network = by_hand()
    network[0].bias[0] = -7.0
    low, high = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [2.0, 1.0]]]).double()
    first, _ = significance.of_nodes(network, Interval(low, high))
    assert first.tolist() == pytest.approx([3 * 22, 5 * 16])


def test_two_outputs_add_up():
    network = by_hand()
    twice = nn.Sequential(*network[:4], nn.Linear(2, 2).double()).requires_grad_(False)
    twice[4].weight.copy_(torch.tensor([[6.0, 8.0], [-6.0, 8.0]]))
    box = Interval(torch.zeros(2).double(), torch.ones(2).double())
    x = torch.tensor([[0.0, 0], [1, 1]]).double()
    for criterion, where in ((significance.of_nodes, box), (significance.of_data, x)):
        assert criterion(twice, where)[1].tolist() == pytest.approx([2 * 7 * 6, 2 * 24 * 8])


def test_what_data_show_by_hand():
    """Every layer against derivatives and replacements one row, one node at a time."""
    network, x = mlp(3, 4, 3, 2, activation=nn.Tanh), torch.randn(20, 3).double()
    shown, cost = significance.of_data(network, x), significance.ablation_cost(network, x)
    values = significance.hidden_values(network, x)
    assert all(torch.equal(values[k], network[: 2 * k + 2](x)) for k in range(2))
    for k, n in enumerate(values):
        tail = network[2 * k + 2 :]
        slopes = torch.stack([torch.func.jacrev(tail)(row) for row in n]).detach()
        span = n.amax(0) - n.amin(0)
        assert torch.allclose(shown[k], span * slopes.abs().amax(0).sum(0), rtol=1e-12)
        for j in range(n.shape[1]):
            held = torch.stack(
                [torch.where(torch.arange(len(r)) == j, n[:, j].mean(), r) for r in n]
            )
            change = (tail(held) - network(x)).square().sum(1).mean().sqrt()
            assert cost[k][j].item() == pytest.approx(change.item(), rel=1e-10)


def test_a_node_that_goes_leaves_its_constant_in_the_next_bias():
    network = by_hand()
    network[2].bias[:] = torch.tensor([0.25, -0.5])
    box = Interval(torch.zeros(2).double(), torch.ones(2).double())  # nodes in [0, 7] and [0, 5]
    smaller = significance.prune(network, [1, 2], box=box, compensation="midpoint")
    assert smaller[0].weight.tolist() == [[3, 4]]  # 154 against 80
    assert smaller[2].weight.tolist() == [[1], [2]]
    assert smaller[2].bias.tolist() == pytest.approx([0.25, -0.5 + 2 * 2.5])
    data = torch.tensor([[0.0, 0.2], [0.0, 0.6]]).double()  # the second node is 1, then 3
    smaller = significance.prune(network, [1, 2], box=box, compensation="mean", data=data)
    assert smaller[2].bias.tolist() == pytest.approx([0.25, -0.5 + 2 * 2.0])


def test_what_is_not_finite_does_not_prune():
    network, box = by_hand(), unit_box(2)
    for bad in (math.nan, math.inf, -math.inf):
        scores = [torch.ones(2), torch.tensor([1.0, bad])]
        with pytest.raises(ValueError, match=rf"scores\[1\] must be finite, got {bad}"):
            significance.prune(network, [1, 1], box=box, scores=scores)
        with pytest.raises(ValueError, match=f"data must be finite, got {bad}"):
            significance.prune(network, [1, 1], box=box, data=torch.full((5, 2), bad).double())
    everything = Interval(torch.full((2,), -math.inf).double(), torch.full((2,), math.inf).double())
    with pytest.raises(ValueError, match=r"scores\[0\] must be finite"):
        significance.prune(network, [1, 1], box=everything, compensation="none")


def test_significance_ranks_nodes_as_ablation_does():
    network = mlp(2, 24, 24, 1, activation=nn.Tanh)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2000, 2, generator=generator).double() * 2 - 1
    cost = significance.ablation_cost(network, x)

    def rank(scores):
        return min(spearmanr(s, c).statistic for s, c in zip(scores, cost, strict=True))

    assert rank(significance.of_nodes(network, unit_box(2), 256)) > 0.95
    assert rank(significance.of_nodes(network, significance.kd_cells(x, 64))) > 0.9
    assert rank(significance.of_data(network, x)) > 0.95
    assert rank(significance.of_nodes(network, unit_box(2))) < 0.9  # one box: too wide to tell
    assert rank(significance.magnitude(network)) < 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    network = mlp(2, 4, 4, 1, dtype=dtype)
    box = unit_box(2, dtype)
    assert significance.of_nodes(network, box, 4)[0].dtype == dtype
    for compensation in COMPENSATIONS:
        smaller = significance.prune(network, [2, 2], box=box, compensation=compensation)
        assert {p.dtype for p in smaller.parameters()} == {dtype}
        assert forward(smaller, box).contains(smaller(torch.zeros(2, dtype=dtype))).all()


BAD = [
    (lambda n, b: significance.prune(n, [3], box=b), "keep"),
    (lambda n, b: significance.prune(n, [0, 2], box=b), "keep"),
    (lambda n, b: significance.prune(n, [5, 2], box=b), "keep"),
    (lambda n, b: significance.prune(n, [2, 2], box=b, compensation="median"), "compensation"),
    (lambda n, b: significance.prune(n, [2, 2], box=b, scores=[torch.ones(4)]), "scores"),
    (lambda n, b: significance.of_nodes(n, b, 3), "cells must be a power of two"),
    (lambda n, b: significance.of_nodes(n, b.reshape(1, 2), 2), "splits"),
    (lambda n, b: significance.kd_cells(torch.zeros(10, 2), 6), "power of two"),
    (lambda n, b: significance.kd_cells(torch.zeros(3, 2), 4), "at least"),
    (lambda n, b: significance.remove_layer(n, 2, torch.zeros(3, 2)), "layer"),
    (lambda n, b: significance.prune_iteratively(
        n, [2, 2], box=b, retrain=None, factor=1.0), "factor"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_raises_one_clear_error(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call(mlp(2, 4, 4, 1), unit_box(2))

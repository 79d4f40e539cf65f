"""Points: where they lie, and what refinement replaces."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import collocation, heston
from soundgreeks.models.heston import TABLE_I
from soundgreeks.operators import PRESETS
from soundgreeks.operators.collocation import Points

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_map_of_eq_14_thins_out_the_middle_and_sinh_does_not():
    u = torch.linspace(0, 1, 10_001, dtype=F64)
    tanh, sinh = collocation.tanh_map(u, -2, 2), collocation.sinh_map(u, -2, 2)
    assert tanh.max().item() == pytest.approx(2 * torch.tanh(torch.tensor(2.0)).item())
    torch.testing.assert_close(sinh[[0, -1]], torch.tensor([-2.0, 2.0], dtype=F64))

    def share(x):
        return (x.abs() < 0.1).double().mean().item()

    assert share(tanh) < 0.1 / 2 < share(sinh)


@pytest.mark.parametrize("x_map", collocation.MAPS)
def test_points_lie_in_table_i_under_feller(x_map):
    points = collocation.draw(500, x_map=x_map, edge_share=0.5, generator=generator())
    for name in ("x", "nu", "tau"):
        low, high = TABLE_I[name]
        assert getattr(points, name).min() >= low and getattr(points, name).max() <= high
    for name in ("kappa", "theta", "sigma", "rho", "r"):
        low, high = TABLE_I[name]
        assert getattr(points.p, name).min() >= low and getattr(points.p, name).max() <= high
    assert heston.satisfies_feller(points.p).all()
    edge = points.p.sigma**2 / (2 * points.p.kappa * points.p.theta)
    assert (edge > 0.8).double().mean() > 0.35


def test_draws_repeat_from_a_seed_and_differ_between_seeds():
    a, b, c = (collocation.draw((3, 20), generator=generator(s)) for s in (1, 1, 2))
    assert all(
        torch.equal(p, q) for p, q in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )
    assert not torch.equal(a.x, c.x)


def test_similar_points_follow_the_width_of_the_price():
    points = collocation.draw_similar(
        4000, domain=PRESETS["sound"].domain, uniform_share=0, generator=generator()
    )
    w = heston.expected_variance(points.nu, points.tau, points.p)
    z = points.x / w.sqrt()
    assert z[points.x.abs() < 2.5].std().item() == pytest.approx(1.6, rel=0.05)


def test_at_the_money_and_grids():
    points = collocation.draw_at_the_money((4, 30), generator=generator())
    assert points.x.abs().max() <= 0.05 and points.grid and points.count == 120
    pieces = points.chunks(40)
    assert torch.equal(torch.cat([p.x for p in pieces]), points.x)
    assert max(p.count for p in pieces) <= 40
    shards = [points.shard(rank, 2) for rank in (0, 1)]
    assert sorted(torch.cat([s.p.kappa for s in shards]).flatten().tolist()) == sorted(
        points.p.kappa.flatten().tolist()
    )
    with pytest.raises(ValueError, match="world size must be a divisor of 4, got 3"):
        points.shard(0, 3)


def test_refinement_puts_the_worst_candidates_in_place_of_random_points():
    active = collocation.draw(200, generator=generator(1))
    candidates = collocation.draw(50, generator=generator(2))
    scores = torch.rand(50, generator=generator(3))
    renewed = collocation.refine(active, candidates, scores, 20, generator=generator(4))
    changed = renewed.x != active.x
    assert changed.sum() == 20 and len(renewed.x) == 200
    worst = scores.topk(20).indices
    assert set(renewed.x[changed].tolist()) == set(candidates.x[worst].tolist())
    assert set(renewed.p.kappa[changed].tolist()) == set(candidates.p.kappa[worst].tolist())
    for value in (0, 51):
        with pytest.raises(ValueError, match=rf"count must be in \[1, 50\], got {value}"):
            collocation.refine(active, candidates, scores, value)
    with pytest.raises(ValueError, match="scores must be finite, got nan"):
        collocation.refine(active, candidates, scores * torch.nan, 20)


def test_refinement_of_a_grid_has_two_sides():
    active = collocation.draw((20, 40), generator=generator(1))
    new = collocation.draw((10, 10), generator=generator(2))
    candidates = Points(new.x, new.state, new.tau, active.p)
    points = collocation.refine(active, candidates, torch.arange(10.0), 4)
    assert (points.x != active.x).sum() == 4
    assert torch.equal(points.p.stack(), active.p.stack())
    both = collocation.refine_parameters(points, new.p, torch.arange(10.0), 2)
    assert (both.p.kappa != active.p.kappa).sum() == 2
    assert set(new.p.kappa[[8, 9], 0].tolist()) <= set(both.p.kappa[:, 0].tolist())


def test_proportional_resampling_prefers_large_residuals_but_leaves_none_out():
    candidates = collocation.draw(4000, generator=generator(1))
    scores = (candidates.x > 1).to(F64)
    chosen = collocation.resample_proportionally(candidates, scores, 1000, generator=generator(2))
    share, uniform = (chosen.x > 1).double().mean(), scores.mean()
    expected = uniform * (1 / uniform + 1) / 2
    # Drawing without replacement exhausts the favoured points a little: at most by a fifth.
    assert 0.8 * expected < share < 1.05 * expected
    assert (chosen.x < 0).any()


def test_bad_sizes_and_maps():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        collocation.draw(0)
    with pytest.raises(ValueError, match="x_map must be one of"):
        collocation.draw(5, x_map="cosh")


def test_select_keeps_points_and_parameters_together():
    points = collocation.draw(30, generator=generator())
    part = points.select(torch.tensor([3, 7]))
    assert torch.equal(part.p.theta, points.p.theta[[3, 7]])
    assert torch.equal(replace(part).x, points.x[[3, 7]])

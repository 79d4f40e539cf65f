"""Sobolev training: labels against closed forms, the loss against its formula, seeded training."""

import copy
import math

import pytest
import torch
from torch import nn

from soundgreeks import bachelier, sobolev
from soundgreeks.pruning.sobolev import Labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(dim, *widths, seed=0, activation=nn.SiLU):
    torch.manual_seed(seed)
    layers = []
    for width in widths:
        layers += [nn.Linear(dim, width), activation()]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, 1))


@pytest.fixture(scope="module")
def basket():
    return bachelier.Basket.random()


@pytest.fixture(scope="module")
def spots(basket):
    return basket.spots(64, generator=seeded())


def test_labels_from_a_model_are_its_greeks(basket, spots):
    directions = sobolev.random_directions(3, 7, generator=seeded(), dtype=torch.float64)
    labels = sobolev.differentiate(basket.call, spots, order=2, directions=directions)
    greeks = basket.greeks(spots)
    products = greeks.gamma[:, None, None] * (directions @ basket.weights)[:, None] * basket.weights
    assert torch.allclose(labels.value, greeks.price, atol=1e-12)
    assert torch.allclose(labels.gradient, greeks.deltas, atol=1e-12)
    assert torch.allclose(labels.curvature, products, atol=1e-12)
    assert not any(t.requires_grad for t in labels)


def test_labels_from_a_network_are_its_derivatives(spots):
    network = mlp(7, 5, 4).double()
    directions = torch.eye(7, dtype=torch.float64)[:2]
    labels = sobolev.differentiate(network, spots / 100, order=2, directions=directions)

    def one(x):
        return network(x)[0]

    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(one, spots[i] / 100)
        hessian = torch.autograd.functional.hessian(one, spots[i] / 100)
        assert torch.allclose(labels.gradient[i], jacobian, atol=1e-12)
        assert torch.allclose(labels.curvature[i], hessian[:2], atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_labels_in_chunks_are_the_labels(basket, spots, order):
    directions = torch.eye(7, dtype=torch.float64)[:2]
    whole = sobolev.differentiate(basket.call, spots, order=order, directions=directions)
    parts = sobolev.distil(basket.call, spots, order=order, directions=directions, chunk=23)
    for a, b in zip(whole, parts, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-12)
    with pytest.raises(ValueError, match="chunk must be a positive integer, got 0"):
        sobolev.distil(basket.call, spots, chunk=0)


def test_a_linear_function_has_no_curvature(basket, spots):
    for function in (
        basket.level,
        nn.Linear(7, 1).double(),
        mlp(7, 4, activation=nn.ReLU).double(),
    ):
        labels = sobolev.differentiate(function, spots, order=2, directions=torch.eye(7).double())
        assert labels.gradient.abs().max() > 0
        assert labels.curvature.abs().max() == 0


def test_along_is_delta_and_gamma(basket, spots):
    greeks = basket.greeks(spots)
    for ours, truth in zip(sobolev.along(basket.call, spots), greeks[:3], strict=True):
        assert torch.allclose(ours, truth, atol=1e-12)
    _, partial, second = sobolev.along(basket.call, spots, torch.eye(7, dtype=torch.float64)[2])
    assert torch.allclose(partial, greeks.deltas[:, 2], atol=1e-12)
    assert torch.allclose(second, greeks.gamma * basket.weights[2] ** 2, atol=1e-12)


def test_along_a_network_is_its_full_derivatives(spots):
    network = sobolev.Standardised(mlp(7, 6, 6).double(), spots, spots.sum(1))
    price, delta, gamma = sobolev.along(network, spots)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(network, spots[i : i + 1])
        hessian = torch.autograd.functional.hessian(network, spots[i : i + 1])
        assert price[i].item() == pytest.approx(network(spots[i : i + 1]).item(), abs=1e-12)
        assert delta[i].item() == pytest.approx(jacobian.sum().item(), abs=1e-12)
        assert gamma[i].item() == pytest.approx(hessian.sum().item(), abs=1e-12)


# Directions


def test_the_basket_has_one_principal_direction(basket, spots):
    gradients = basket.greeks(spots).deltas
    directions = sobolev.principal_directions(gradients, share=0.99)
    assert directions.shape == (1, 7)
    cosine = (directions[0] @ basket.weights).abs() / basket.weights.norm()
    assert cosine.item() == pytest.approx(1, abs=1e-12)


def test_principal_directions_hold_the_share_asked_for():
    scales = torch.tensor([3.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    # The offset is no variance: components are of the centred gradients.
    gradients = 5 + scales * torch.randn(20000, 4, generator=seeded(), dtype=torch.float64)
    counts = [len(sobolev.principal_directions(gradients, s)) for s in (0.5, 0.8, 0.95, 1.0)]
    assert counts == [1, 2, 3, 4]  # variances 9, 4, 1, 0.01
    rows = sobolev.principal_directions(gradients, 1.0)
    assert torch.allclose(rows @ rows.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_random_directions_are_orthonormal():
    rows = sobolev.random_directions(3, 9, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(rows @ rows.T, torch.eye(3, dtype=torch.float64), atol=1e-12)


# The loss


def test_loss_is_the_formula(basket, spots):
    directions = torch.eye(7, dtype=torch.float64)[:2]
    labels = sobolev.differentiate(basket.call, spots, order=2, directions=directions)
    network = sobolev.Standardised(mlp(7, 4).double(), labels.x, labels.value)
    ours = sobolev.differentiate(network, spots, order=2, directions=directions)
    scale = sobolev.Scale.of(labels)
    expected = ((ours.value - labels.value) ** 2).mean() / labels.value.var()
    columns = [
        ((ours.gradient - labels.gradient)[:, j] ** 2).mean() / (labels.gradient[:, j] ** 2).mean()
        for j in range(7)
    ]
    expected = expected + 3.0 * sum(columns) / 7
    second = [
        ((ours.curvature - labels.curvature)[:, k] ** 2).sum() / (labels.curvature[:, k] ** 2).sum()
        for k in range(2)
    ]
    expected = expected + 0.5 * sum(second) / 2
    assert sobolev.loss(network, labels, scale, 3.0, 0.5).item() == pytest.approx(expected.item())
    assert sobolev.loss(basket.call, labels, scale, 3.0, 0.5).item() == pytest.approx(0, abs=1e-24)


def test_loss_is_free_of_units(basket, spots):
    """Spots in cents and prices in thousands change nothing."""
    labels = sobolev.differentiate(basket.call, spots)
    scaled = Labels(100 * labels.x, labels.value / 1000, labels.gradient / 100000)
    network = mlp(7, 4).double()
    inner = sobolev.Standardised(network, labels.x, labels.value)
    outer = sobolev.Standardised(network, scaled.x, scaled.value)
    first = sobolev.loss(inner, labels, sobolev.Scale.of(labels), 2.0)
    second = sobolev.loss(outer, scaled, sobolev.Scale.of(scaled), 2.0)
    assert first.item() == pytest.approx(second.item(), rel=1e-12)


def test_loss_is_differentiable_in_the_weights(basket, spots):
    """Backward through Hessian-vector products against a central difference."""
    directions = torch.eye(7, dtype=torch.float64)[:1]
    labels = sobolev.differentiate(basket.call, spots, order=2, directions=directions)
    network = sobolev.Standardised(mlp(7, 4).double(), labels.x, labels.value)
    scale = sobolev.Scale.of(labels)
    weight = network.network[0].weight

    def value():
        return sobolev.loss(network, labels, scale, 1.0, 1.0)

    (slope,) = torch.autograd.grad(value(), weight)
    with torch.no_grad():
        weight[1, 2] += 1e-5
        up = value()
        weight[1, 2] -= 2e-5
        down = value()
        weight[1, 2] += 1e-5
    assert slope[1, 2].item() == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_a_dead_input_does_not_divide_by_zero(spots):
    labels = sobolev.differentiate(lambda x: x[:, 0] ** 2, spots)
    network = sobolev.Standardised(mlp(7, 3).double(), labels.x, labels.value)
    assert sobolev.loss(network, labels, sobolev.Scale.of(labels), 1.0).isfinite()


# Training


def train(basket, *, seed=0, widths=(6, 6), sampler=None, **settings):
    single = basket.to(dtype=torch.float32)
    pilot = single.sample(4096, generator=seeded(77))
    network = sobolev.Standardised(mlp(7, *widths, seed=seed), pilot.spots, pilot.payoff)

    def antithetic(n, generator):
        return single.sample(n, scheme="antithetic", generator=generator)[:3]

    settings = {"steps": 250, "batch": 1024, "seed": seed} | settings
    losses = sobolev.fit(network, sampler or antithetic, **settings)
    return network, losses


def scores(network, basket):
    spots = basket.spots(4096, generator=seeded(999))
    pairs = zip(sobolev.along(network.double(), spots), basket.greeks(spots)[:3], strict=True)
    return [sobolev.score(ours, truth) for ours, truth in pairs]


def test_training_repeats_bit_for_bit_and_differs_by_seed(basket):
    first, losses = train(basket, steps=20, lam=10.0)
    second, again = train(basket, steps=20, lam=10.0)
    other, _ = train(basket, steps=20, lam=10.0, seed=1)
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert torch.equal(losses, again)
    assert not torch.equal(first.network[0].weight, other.network[0].weight)


def test_derivatives_in_the_loss_mend_the_gamma(basket):
    """Same network, same few paths: value only against pathwise derivatives."""
    single = basket.to(dtype=torch.float32)
    sampler = sobolev.resample(Labels(*single.sample(2048, generator=seeded())[:3]))
    value_only = scores(train(basket, sampler=sampler, lam=0.0)[0], basket)
    with_gradient = scores(train(basket, sampler=sampler, lam=10.0)[0], basket)
    for before, after in zip(value_only, with_gradient, strict=True):
        assert 1 - after.r2 < 0.5 * (1 - before.r2)
    assert with_gradient[2].r2 > 0.9


def test_a_network_learns_from_a_network(basket):
    teacher, _ = train(basket, widths=(8, 8), lam=10.0)
    single = basket.to(dtype=torch.float32)

    def sampler(n, generator):
        return sobolev.differentiate(teacher, single.spots(n, generator=generator))

    student, losses = train(basket, widths=(8, 8), seed=3, sampler=sampler, lam=1.0)
    spots = basket.spots(1024, generator=seeded(5)).float()
    pairs = zip(sobolev.along(student, spots), sobolev.along(teacher, spots), strict=True)
    assert [sobolev.score(*pair).r2 > 0.99 for pair in pairs][:2] == [True, True]
    assert losses[-20:].mean() < 0.01 * losses[:5].mean()


def test_second_order_labels_train(basket):
    single = basket.to(dtype=torch.float32)
    direction = (single.weights / single.weights.norm())[None]

    def sampler(n, generator):
        x = single.spots(n, generator=generator)
        return sobolev.differentiate(single.call, x, order=2, directions=direction)

    network, losses = train(basket, sampler=sampler, lam=1.0, mu=1.0, steps=150)
    assert losses[-10:].mean() < 0.05 * losses[:5].mean()
    assert scores(network, basket)[2].r2 > 0.95


def test_weight_decay_shrinks_the_weights(basket):
    def size(decay):
        network, _ = train(basket, lam=0.0, steps=60, decay=decay)
        return sum(p.square().sum() for p in network.parameters())

    assert size(0.1) < 0.7 * size(0.0)


def test_training_from_a_fixed_set(basket):
    data = Labels(*basket.to(dtype=torch.float32).sample(4096, generator=seeded())[:3])
    _, losses = train(basket, sampler=sobolev.resample(data), lam=1.0, steps=60)
    assert losses[-10:].mean() < 0.8 * losses[:5].mean()
    drawn = sobolev.resample(data)(16, seeded())
    assert not torch.equal(drawn.x, data.x[:16])
    rows = (drawn.x[:, None] == data.x).all(-1).float().argmax(1)
    assert torch.equal(data.value[rows], drawn.value)
    assert torch.equal(data.gradient[rows], drawn.gradient)


def test_score():
    truth = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert sobolev.score(truth, truth) == (1.0, 0.0, 0.0)
    r2, median, worst = sobolev.score(truth + torch.tensor([0.0, 0.0, 0.0, 2.0]), truth)
    assert (r2, median, worst) == (pytest.approx(1 - 4 / 5), 0.0, 2.0)


def test_scores_are_those_of_value_delta_and_gamma(basket, spots):
    truth = basket.greeks(spots)
    network = sobolev.Standardised(mlp(7, 5), spots.float(), truth.price.float())
    found = sobolev.scores(network, spots, truth)
    exact = network.around(copy.deepcopy(network.network)).double()
    for mine, ours, true in zip(found, sobolev.along(exact, spots), truth[:3], strict=True):
        assert mine == sobolev.score(ours, true)
    assert found.gamma.worst > found.gamma.median > 0
    assert all(p.dtype == torch.float32 for p in network.parameters())  # a copy was evaluated


def test_a_standardisation_goes_around_another_network(spots):
    first = sobolev.Standardised(mlp(7, 5).double(), spots, spots.sum(1))
    inner = mlp(7, 4, seed=1).double()
    second = first.around(inner)
    assert second.network is inner and first.network is not inner
    expected = sobolev.Standardised(inner, spots, spots.sum(1))
    assert torch.equal(second(spots), expected(spots))
    second.float()
    assert first.x_mean.dtype == torch.float64  # nothing is shared


def test_bad_input_is_named(basket):
    def bare(n, generator):
        return basket.to(dtype=torch.float32).sample(n, generator=generator)[:2]

    for settings, name in [
        ({"steps": 0}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"lam": math.nan}, "lam"),
        ({"mu": -1.0}, "mu"),
        ({"mu": 1.0}, "mu must be zero without curvature"),
        ({"sampler": bare, "lam": 1.0}, "lam must be zero without gradient"),
        ({"decay": -1.0}, "decay must be finite and non-negative, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=name):
            train(basket, **{"steps": 2} | settings)
    with pytest.raises(ValueError, match="share"):
        sobolev.principal_directions(torch.ones(3, 2), share=0.0)
    for order in (3, -1, 1.5):
        with pytest.raises(ValueError, match=f"order must be 0, 1 or 2, got {order}"):
            sobolev.differentiate(torch.sin, torch.ones(3, 1), order=order)
    with pytest.raises(ValueError, match="directions must be given for order 2"):
        sobolev.differentiate(torch.sin, torch.ones(3, 1), order=2)
    with pytest.raises(ValueError, match="count"):
        sobolev.random_directions(5, 3)


def test_a_diverging_run_says_where(basket):
    def broken(n, generator):
        return Labels(torch.zeros(n, 7), torch.full((n,), math.nan), torch.zeros(n, 7))

    with pytest.raises(FloatingPointError, match="step 0"):
        train(basket, sampler=broken, steps=3)


@pytest.fixture
def pair(basket, spots):
    """Two different networks with one standardisation."""
    value = basket.call(spots)
    frame = sobolev.Standardised(mlp(7, 4, 3).double(), spots, value)
    return [frame, frame.around(mlp(7, 4, 3, seed=1).double())]


def test_networks_together_each_see_rows_of_their_own(pair, spots):
    together = sobolev.Together(pair)
    expected = torch.cat([pair[0](spots[:32]), pair[1](spots[32:])])
    assert torch.allclose(together(spots), expected, atol=1e-12)
    for member, twin in zip(pair, together.members(), strict=True):
        assert torch.equal(member(spots), twin(spots))
        assert not any(p.requires_grad for p in twin.parameters())
    with pytest.raises(ValueError, match="x must be a multiple of the 2 members, got 63"):
        together(spots[1:])
    with pytest.raises(ValueError, match="members must be networks of one shape, got 2 shapes"):
        sobolev.Together([pair[0], pair[0].around(mlp(7, 5, 3).double())])
    other = sobolev.Standardised(mlp(7, 4, 3).double(), 2 * spots, spots[:, 0])
    with pytest.raises(ValueError, match="members must be alike in their standardisation"):
        sobolev.Together([pair[0], other])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_networks_train_together_as_they_would_alone(pair, basket, spots, decay):
    labels = sobolev.differentiate(basket.call, spots)
    twice = tuple(torch.cat([t, t]) for t in labels[:3])
    options = dict(steps=40, lr=0.01, lam=1.0, pilot=64, decay=decay)
    together = sobolev.Together(pair)
    # The same pilot, so that the scales are the same too.
    joint = sobolev.fit(
        together, lambda n, generator: labels if n == 64 else twice, batch=128, **options
    )
    alone = [sobolev.fit(m, lambda n, generator: labels, batch=64, **options) for m in pair]
    torch.testing.assert_close(joint, sum(alone) / 2)
    for member, twin in zip(pair, together.members(), strict=True):
        for p, q in zip(member.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)


def test_networks_together_move_together(pair, spots):
    together = sobolev.Together(pair).to(torch.float32)
    assert together(spots.float()).dtype == torch.float32
    for member in together.members():
        assert member(spots.float()).dtype == torch.float32
    assert pair[0].x_mean.dtype == torch.float64  # theirs is not ours
    meta = sobolev.Together(pair).to("meta")
    assert meta(spots.to("meta")).device.type == "meta"
    assert {t.device.type for m in meta.members() for t in m.state_dict().values()} == {"meta"}


def test_fit_is_adam_under_torchs_one_cycle(basket):
    """The same bits as the loop that anyone would write."""
    single = basket.to(dtype=torch.float32)
    data = Labels(*single.sample(2048, generator=seeded())[:3])
    sampler, steps, decay = sobolev.resample(data), 200, 1e-3
    plain = sobolev.Standardised(mlp(7, 3, 3, 1, 2, 2, 2), data.x, data.value)
    ours = copy.deepcopy(plain)
    generator = seeded(4)
    scale = sobolev.Scale.of(sampler(512, generator))
    adam = torch.optim.Adam(plain.parameters(), 0.02, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, 0.02, total_steps=steps + 1, pct_start=0.3, div_factor=25, final_div_factor=400
    )
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        value = sobolev.loss(plain, sampler(128, generator), scale, 3.0)
        losses.append(value.detach())
        value.backward()
        adam.step()
        schedule.step()
    options = dict(steps=steps, batch=128, pilot=512, lr=0.02, lam=3.0, decay=decay, seed=4)
    assert torch.equal(sobolev.fit(ours, sampler, **options), torch.stack(losses))
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": (64, 1)}, r"x \(64, 7\), value \(64, 1\), gradient \(64, 7\)$"),
        ({"gradient": (64,)}, r"gradient \(64,\)"),
        ({"x": (64,)}, r"got x \(64,\)"),
        ({"directions": (2, 7), "curvature": (64, 7, 2)}, r"curvature \(64, 7, 2\)"),
        ({"curvature": (64, 2, 7)}, r"curvature \(64, 2, 7\)"),
    ],
)
def test_labels_of_other_shapes_are_refused(changes, message):
    labels = Labels(torch.rand(64, 7), torch.rand(64), torch.rand(64, 7))
    labels = labels._replace(**{k: torch.rand(shape) for k, shape in changes.items()})
    for call in (
        lambda: sobolev.fit(mlp(7, 3), lambda n, generator: labels, steps=2),
        lambda: sobolev.loss(mlp(7, 3), labels, sobolev.Scale.of(labels)),
    ):
        with pytest.raises(ValueError, match="shapes of the labels must be .*" + message):
            call()


def test_what_is_constant_is_not_scaled(spots):
    x = spots.clone()
    x[:, 2] = 0.1  # its mean is rounded: the deviation is not exactly zero
    frame = sobolev.Standardised(mlp(7, 3).double(), x.float().double(), torch.full((64,), 0.1))
    assert frame.x_std[2] == 1 and frame.y_std == 1
    assert torch.equal(
        frame.x_std[[0, 1, 3, 4, 5, 6]], x.float().double().std(0)[[0, 1, 3, 4, 5, 6]]
    )
    assert frame(x).isfinite().all()
    labels = sobolev.differentiate(lambda x: 0 * x[:, 0] + 3, x)
    assert sobolev.Scale.of(labels).value == 1
    losses = sobolev.fit(frame, lambda n, generator: labels, steps=3, lam=1.0, pilot=64, batch=64)
    assert losses.isfinite().all()


def test_a_frozen_network_is_refused(basket):
    with pytest.raises(ValueError, match="network must be one whose parameters require gradients"):
        sobolev.fit(mlp(7, 3).requires_grad_(False), basket.sample)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_generators_on_the_device():
    generator = torch.Generator("cuda").manual_seed(0)
    assert sobolev.random_directions(2, 5, generator=generator).device.type == "cuda"
    rows = sobolev.random_directions(2, 5, generator=generator, device="cpu")
    assert rows.device.type == "cpu"
    drawn = sobolev.resample(Labels(torch.rand(9, 2), torch.rand(9)))(4, generator)
    assert drawn.x.shape == (4, 2)

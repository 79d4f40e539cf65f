"""Second-order optimisers: their formulas, their bookkeeping, and how far they get."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from soundgreeks.training import Phase, make_optimizer, processes, train
from soundgreeks.training import broyden as room
from soundgreeks.training.broyden import scaling, update


class Function:
    """A function of one vector as a minimal `training.Loss`."""

    def __init__(self, function, start):
        self.function, self.units, self.calls = function, 0, 0
        self.module = nn.Linear(len(start), 1, bias=False, dtype=start.dtype)
        self.module.weight.data.copy_(start[None])

    def begin(self, phase, number, step):
        self.units += 1

    def parts(self):
        self.calls += 1
        yield {"value": self.function(self.module.weight[0])}

    def minimise(self, optimizer, steps):
        """The value at the end."""
        train(self.module, self, [Phase(optimizer, steps)])
        return float(self.function(self.module.weight.detach()[0]))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def definite(size, generator):
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return a @ a.T + 0.1 * torch.eye(size, dtype=torch.float64)


# Self-scaled Broyden


def pairs(count=50):
    """Inverse Hessians H, steps s and changes y of the gradient, with s'y > 0; b and h of each."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        size = 2 + i % 6
        inverse, hessian = definite(size, generator), definite(size, generator)
        s = torch.randn(size, generator=generator, dtype=torch.float64)
        y = (0.1 + i % 5) * (hessian @ s)
        b = float(s @ torch.linalg.solve(inverse, s) / (s @ y))
        yield inverse, s, y, b, float(y @ inverse @ y / (s @ y))


def test_the_secant_equation_holds_for_every_scaling():
    for inverse, s, y, b, h in pairs():
        for phi, tau in (scaling(b, h, len(s)), (1.0, 1.0), (0.3, 2.0)):
            new = update(inverse.clone(), s, y, phi, tau)
            torch.testing.assert_close(new @ y, s, rtol=1e-9, atol=1e-11)
            assert torch.linalg.eigvalsh(new).min() > 0


def test_the_update_is_the_inverse_of_the_family_of_hessians():
    """Al-Baali's form, B <- tau (B - Bss'B/s'Bs + theta s'Bs ww') + yy'/s'y, inverted."""
    for inverse, s, y, b, h in pairs():
        phi, tau = scaling(b, h, len(s))
        a = b * h - 1
        theta = (1 - phi) / (1 + a * phi)  # the relation of phi and theta is its own inverse
        hessian = torch.linalg.inv(inverse)
        bs, sy = hessian @ s, s @ y
        sbs = s @ bs
        w = y / sy - bs / sbs
        new = hessian - bs.outer(bs) / sbs + theta * sbs * w.outer(w)
        new = tau * new + y.outer(y) / sy
        ours = update(inverse.clone(), s, y, phi, tau)
        torch.testing.assert_close(ours @ new, torch.eye(len(s), dtype=s.dtype), rtol=0, atol=1e-6)


def test_scaling_at_its_corners():
    assert scaling(1.0, 1.0, 10) == (1.0, 1.0)
    # b = 2: the Hessian is twice too large along s, h = 1: right along y. By hand: a = 1,
    # c = sqrt(1/2), least = 1 - c, theta = max(-c, (1 - 2)/2) = -1/2, volume = 1/2,
    # tau = min(1/2 * 2^(1/(10 - 1)), 1/2) = 1/2, phi = (3/2)/(1/2) = 3.
    assert scaling(2.0, 1.0, 10) == pytest.approx((3.0, 0.5))
    # b = 1/2: twice too small; h = 4: a = 1, least = 1, theta = min(1, 1) = 1: DFP;
    # volume = 2, tau = min(2^(-1/9), 1).
    assert scaling(0.5, 4.0, 10) == pytest.approx((0.0, 2 ** (-1 / 9)))
    for b, h in ((1e-30, 1e40), (1e30, 1e30), (1e-8, 1e8), (1e12, 1e-12)):
        for size in (1, 2, 1000):
            phi, tau = scaling(b, h, size)
            assert math.isfinite(phi) and tau > 0


@pytest.mark.parametrize("size", [2, 10])
def test_broyden_crosses_rosenbrocks_valley(size):
    problem = Function(rosenbrock, torch.linspace(-1, 1, size, dtype=torch.float64))
    assert problem.minimise("broyden", 400) < 1e-20
    assert problem.calls < 250  # gradients; plain descent is nowhere near


def test_scaling_beats_bfgs_where_curvatures_differ(monkeypatch):
    """A quadratic of 40 curvatures from 1 to 10^6."""
    generator = torch.Generator().manual_seed(1)
    curvature = 10 ** torch.linspace(0, 6, 40, dtype=torch.float64)
    start = torch.randn(40, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q

    def quadratic(x):
        return 0.5 * (curvature * (turn @ x) ** 2).sum()

    ours = Function(quadratic, start)
    scaled = ours.minimise("broyden", 120)
    monkeypatch.setattr(room, "scaling", lambda b, h, size: (1.0, 1.0))
    plain = Function(quadratic, start)
    for _ in range(2):  # twice as many steps, more gradients than ours
        bfgs = plain.minimise("broyden", 120)
    assert plain.calls > ours.calls
    assert scaled < 1e-6 * bfgs


# Stalls, and trial steps out of the domain


@pytest.mark.parametrize("optimizer", ["lbfgs", "broyden"])
def test_a_line_search_that_finds_no_lower_point_ends_its_phase(optimizer):
    problem = Function(lambda x: (x * x).sum(), torch.zeros(3))
    assert problem.minimise(optimizer, 10_000) == 0
    assert problem.units == 1
    later = Function(rosenbrock, torch.tensor([-1.0, 1.0]))
    later.minimise(optimizer, 10_000)
    assert 1 < later.units < 10


@pytest.mark.parametrize("optimizer", ["lbfgs", "broyden"])
def test_a_trial_step_out_of_the_domain_is_shortened(optimizer):
    # From 1e-3 the first steps overshoot far into x < 0, where the loss is NaN.
    problem = Function(lambda x: (3 * x - x.log()).sum(), torch.tensor([1e-3, 5.0]).double())
    problem.minimise(optimizer, 100)
    torch.testing.assert_close(problem.module.weight[0], torch.full((2,), 1 / 3).double())


# Gauss-Newton


class Fit:
    """Mean squared error of a module at (n, d) inputs; half of the residuals in one vector."""

    def __init__(self, module, x, y):
        self.module, self.x, self.y, self.units = module, x, y, 0

    def begin(self, phase, number, step):
        self.units += 1

    def parts(self):
        yield {"fit": (self.module(self.x)[:, 0] - self.y).square().mean()}

    def residuals(self):
        size, half = len(self.x) ** 0.5, len(self.x) // 2

        def row(weights, x, y):
            return (functional_call(self.module, weights, (x,))[0] - y) / size

        def rest(weights):
            found = functional_call(self.module, weights, (self.x[half:],))[:, 0]
            return (found - self.y[half:]) / size

        yield row, (self.x[:half], self.y[:half])
        yield rest, ()


def small(rows, width=4, dtype=torch.float64):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).to(dtype)
    x = torch.rand(rows, 2, dtype=dtype) * 2 - 1
    return Fit(module, x, torch.sin(3 * x[:, 0]) * x[:, 1])


@pytest.mark.parametrize("rows", [8, 60])  # of 17 weights: sample space and weight space
def test_a_step_is_the_damped_normal_equations(rows, monkeypatch):
    monkeypatch.setattr("soundgreeks.training.gauss_newton._NUMBERS", 5 * 17)  # several chunks
    problem = small(rows)
    weights = dict(problem.module.named_parameters())
    optimizer = make_optimizer(weights, Phase("gauss-newton", 1))
    optimizer.damping = damping = 0.01

    def everything(vector):
        pieces = vector.split([w.numel() for w in weights.values()])
        shaped = {k: v.view_as(w) for (k, w), v in zip(weights.items(), pieces, strict=True)}
        return (functional_call(problem.module, shaped, (problem.x,))[:, 0] - problem.y) / rows**0.5

    start = torch.cat([w.detach().reshape(-1) for w in weights.values()])
    jacobian = torch.autograd.functional.jacobian(everything, start)
    matrix = jacobian.T @ jacobian + damping * torch.eye(17, dtype=torch.float64)
    expected = start - torch.linalg.solve(matrix, jacobian.T @ everything(start))
    problem.evaluate = lambda backward: float(everything(start).square().sum())
    optimizer.advance(0, problem)
    moved = torch.cat([w.detach().reshape(-1) for w in weights.values()])
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)
    old, new = (everything(v).square().sum() for v in (start, expected))
    model = everything(start) + jacobian @ (expected - start)
    gain = float((old - new) / (old - model.square().sum()))
    assert optimizer.damping == pytest.approx(damping * max(1 / 3, 1 - (2 * gain - 1) ** 3))


def test_gauss_newton_outruns_lbfgs():
    """A network of the same shape is there to be found."""
    torch.manual_seed(9)
    teacher, ends = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double(), {}
    for optimizer, steps in (("gauss-newton", 60), ("lbfgs", 600)):
        problem = small(60)
        problem.y = teacher(problem.x)[:, 0].detach()
        ends[optimizer] = train(problem.module, problem, [Phase(optimizer, steps)])["loss"]
    assert ends["gauss-newton"] < 0.5 * ends["lbfgs"]


def test_a_bad_step_is_not_taken_and_damps_the_next():
    """One residual, atan w: from 3 the undamped step goes to -9.5 and on, to infinity."""

    class Atan(Function):
        def __init__(self):
            super().__init__(lambda w: w.atan().square().sum(), torch.tensor([3.0]).double())

        def residuals(self):
            yield lambda weights: weights["weight"].atan()[0, 0], ()

    problem = Atan()
    values = [problem.minimise("gauss-newton", 1) for _ in range(12)]
    assert all(
        b < a for a, b in zip([math.atan(3) ** 2, *values], values, strict=False) if a > 1e-20
    )
    assert values[-1] < 1e-20


def test_gauss_newton_stalls_at_the_bottom_and_leaves_frozen_weights():
    problem = small(60, dtype=torch.float32)
    problem.y = problem.module(problem.x)[:, 0].detach()  # the loss is zero
    problem.module[0].weight.requires_grad_(False)
    before = problem.module[0].weight.clone()
    train(problem.module, problem, [Phase("gauss-newton", 50)])
    assert problem.units == 1
    nn.init.zeros_(problem.module[2].weight)
    summary = train(problem.module, problem, [Phase("gauss-newton", 50)])
    assert summary["loss"] < 1e-10 and torch.equal(problem.module[0].weight, before)


def test_gauss_newton_says_what_it_needs(monkeypatch):
    plain = Function(rosenbrock, torch.zeros(2))
    with pytest.raises(ValueError, match=r"loss must be an object with .*residuals"):
        plain.minimise("gauss-newton", 1)
    assert plain.units == 0
    wrong = small(8)
    wrong.parts = lambda: iter(
        [{"fit": 2 * (wrong.module(wrong.x)[:, 0] - wrong.y).square().mean()}]
    )
    with pytest.raises(ValueError, match="residuals must be those whose squares add to"):
        train(wrong.module, wrong, [Phase("gauss-newton", 1)])
    monkeypatch.setattr(processes, "distributed", lambda: True)
    monkeypatch.setattr(processes, "world", lambda: 2)
    with pytest.raises(ValueError, match="gauss-newton must be run in one process, got 2"):
        train(wrong.module, wrong, [Phase("gauss-newton", 1)])

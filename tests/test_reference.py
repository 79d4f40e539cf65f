"""A verdict holds on the right side only, prints no measured digit, and nbval sees it change."""

import math
import shutil
import subprocess
import sys
from typing import Any

import mpmath as mp
import nbformat
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import erfc

from soundgreeks import bachelier
from soundgreeks.book import reference, runner
from soundgreeks.book.reference import Disagreement, Reference, check, parse

CODE = nbformat.v4.new_code_cell
TABLE = '[a.b]\nwhat = "x"\nvalue = 1.0\ntolerance = 0.1\nsource = "s"\nevidence = "external"\n'


@pytest.mark.parametrize(
    "kind, passes, fails",
    [
        ("equal", [0.91, 1.09], [0.89, 1.11, math.nan, math.inf]),
        ("at most", [-5.0, 1.09], [1.11, math.nan, math.inf]),
        ("at least", [0.91, 5.0], [0.89, math.nan, -math.inf]),
    ],
)
def test_tolerance(kind, passes, fails):
    entry = Reference("k", "x", 1.0, 0.1, "s", "external", kind=kind)
    assert all(entry.holds(value) for value in passes)
    assert not any(entry.holds(value) for value in fails)


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace("tolerance = 0.1", ""),
        TABLE + 'colour = "red"\n',
        TABLE.replace("0.1", "-1"),
        TABLE.replace('"s"', '" "'),
        TABLE.replace("1.0", "nan"),
        TABLE + 'kind = "about"\n',
        TABLE.replace('evidence = "external"\n', ""),
        TABLE.replace("external", "hearsay"),
        TABLE + 'paper = "about 1"\n',
        TABLE + 'paper = "nan"\n',
        TABLE + "paper = 0.9987\n",
        "[a]\nb = 1\n",
    ],
)
def test_a_bad_table_is_named(text):
    with pytest.raises(ValueError, match=r"a[.\]]"):
        parse(text)


def test_an_unknown_evidence_is_one_clear_error():
    with pytest.raises(ValueError) as error:
        parse(TABLE.replace("external", "hearsay"))
    allowed = list(reference.EVIDENCE)
    assert str(error.value) == f"a.b.evidence must be one of {allowed}, got 'hearsay'"


def made_up(**changes):
    """A number that the paper has as 0.9980 and that we hold within a bound of our own."""
    fields: dict[str, Any] = dict(
        key="k", what="x", value=0.9, tolerance=0.0, source="s", evidence="external"
    )
    return Reference(**fields | {"kind": "at least", "paper": "0.9980"} | changes)


@pytest.mark.parametrize(
    "kind, measured, verdict",
    [
        ("at least", 0.9979, "worse"),  # inside our own bound: it holds, and yet we miss the paper
        ("at least", 0.99796, "same"),
        ("at least", 0.99804, "same"),
        ("at least", 0.9981, "better"),
        ("at least", math.nan, "worse"),
        ("at most", 0.9979, "better"),
        ("at most", 0.9981, "worse"),
        ("equal", 0.998, "same"),
        ("equal", 0.9979, "worse"),
        ("equal", 0.9981, "worse"),
    ],
)
def test_the_verdict_against_the_paper_is_not_that_against_our_bound(kind, measured, verdict):
    entry = made_up(kind=kind)
    assert entry.against_paper(measured) == verdict
    assert made_up(kind=kind, paper="").against_paper(measured) == ""
    assert entry.holds(measured) == made_up(kind=kind, paper="").holds(measured)
    assert entry.statement() == made_up(kind=kind, paper="").statement()


@pytest.mark.parametrize("measured", [0.99794, 0.99796, 0.99806, 0.99999, 3e-7, math.nan])
def test_the_stored_value_keeps_the_verdict_against_the_paper(measured):
    entry = made_up(paper="0.9980")
    assert entry.against_paper(entry.rounded(measured)) == entry.against_paper(measured)
    assert made_up(paper="0.9980").rounded(3e-7) == made_up(paper="").rounded(3e-7) == 3e-7
    assert made_up(paper="").rounded(0.99796) == 1.0  # what two digits would have made of it


def test_every_number_says_what_it_is_held_against():
    found = reference.counts(reference.load().values())
    assert list(found) == list(reference.EVIDENCE) and sum(found.values()) == len(reference.load())
    for entry in reference.load().values():
        own = entry.source.startswith(("own run", "read from"))
        assert not own or entry.evidence in ("regression", "quotation"), entry.key


def test_the_share_that_is_held_against_something_else_does_not_fall():
    """A ratchet: raise it with the share, never lower it."""
    found = reference.counts(reference.load().values())
    share = (found["external"] + found["independent"]) / sum(found.values())
    assert math.floor(100 * share) >= 70, found


def test_check_prints_the_claim_and_returns_the_value(capsys):
    assert check("heston.feller_share", 0.51791) == 0.51791
    first = capsys.readouterr().out
    check("heston.feller_share", 0.51799)
    assert first == capsys.readouterr().out == "ok: heston.feller_share = 0.51793 ± 0.0005\n"
    with pytest.raises(Disagreement, match=r"got 0\.6, reference"):
        check("heston.feller_share", 0.6)
    with pytest.raises(KeyError, match=r"did you mean heston\.feller_share"):
        check("heston.feler_share", 0.6)


def test_a_trained_number_is_not_judged_in_the_smoke_profile(monkeypatch, capsys):
    entry = Reference("k", "x", 1.0, 0.1, "s", "regression", trained=True)
    monkeypatch.setattr(reference, "load", lambda: {"k": entry})
    with pytest.raises(Disagreement):
        check("k", 2.0)
    monkeypatch.setattr(reference, "profile", "smoke")
    check("k", 2.0)
    assert "not judged" in capsys.readouterr().out


def test_a_quotation_is_not_called_checked_and_must_still_agree(monkeypatch, capsys):
    entry = Reference("k", "x", 1.0, 0.1, "s", "quotation")
    monkeypatch.setattr(reference, "load", lambda: {"k": entry})
    check("k", 1.0)
    assert capsys.readouterr().out == "quoted: k = 1 ± 0.1\n"
    with pytest.raises(Disagreement):
        check("k", 2.0)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """An executed notebook with one check and glue in the same cell."""
    import papermill

    folder = tmp_path_factory.mktemp("nbval")
    book = nbformat.v4.new_notebook(
        cells=[
            CODE('profile = "read"\ndevice = "auto"\nseed = 0', metadata={"tags": ["parameters"]}),
            CODE(
                "import random\nfrom soundgreeks.book import check, glue\n"
                "share = 0.5179 + 1e-5 * random.random()\n"
                'glue("share", check("heston.feller_share", share))',
                metadata={"tags": ["nbval-check-output"]},
            ),
            CODE("from soundgreeks.book.chapter import end\nend()"),
        ]
    )
    nbformat.write(book, folder / "raw.ipynb")
    papermill.execute_notebook(
        folder / "raw.ipynb", folder / "done.ipynb", kernel_name="python3", progress_bar=False
    )
    return runner.clean(nbformat.read(folder / "done.ipynb", 4))


def changed(notebook, old: str, new: str):
    return nbformat.reads(nbformat.writes(notebook).replace(old, new), 4)


def test_nbval_sees_a_changed_number_and_a_changed_verdict(executed, tmp_path):
    assert runner.faults(executed) == []
    versions = {
        "as_it_was": executed,  # its last digits move from run to run
        "changed_number": changed(executed, "share = 0.5179 +", "share = 0.6179 +"),
        "changed_verdict": changed(executed, "= 0.51793 ±", "= 0.51794 ±"),
    }
    for name, notebook in versions.items():
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    shutil.copy(runner.find_root() / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    failed = {line.split("::")[0] for line in result.stdout.splitlines() if "FAILED" in line}
    assert failed == {"FAILED changed_number.ipynb", "FAILED changed_verdict.ipynb"}, result.stdout


def test_a_stripped_notebook_has_faults(executed):
    bare = changed(executed, "", "")
    for cell in bare.cells:
        cell.outputs, cell.execution_count = [], None
    found = "\n".join(runner.faults(bare))
    assert "not executed 1..n" in found and "no recorded check" in found
    assert "has no output" in found and "no sentinel" in found


# --- Reference values, recomputed by other means -------------------------------------------------


def in_thirty_digits(T, r, v, kappa, theta, sigma, rho):
    """Heston call and Greeks, S = K = 100: two probabilities by Gil-Pelaez, no control variate."""
    h, i = mp.mpf(1) / 8, mp.mpc(0, 1)  # midpoint rule: copies 50 away in log-moneyness

    def exponent(z):
        """ln E[e^{iz ln(S_T/S)}] and its derivatives in v and T."""
        b = kappa - i * rho * sigma * z
        d = mp.sqrt(b**2 + sigma**2 * (z**2 + i * z))
        g, decay = (b - d) / (b + d), mp.exp(-d * T)
        D = (b - d) / sigma**2 * (1 - decay) / (1 - g * decay)
        C = kappa * theta / sigma**2 * ((b - d) * T - 2 * mp.log((1 - g * decay) / (1 - g)))
        D_T = -(z**2 + i * z) / 2 - b * D + sigma**2 / 2 * D**2
        return i * z * r * T + C + D * v, D, i * z * r + kappa * theta * D + D_T * v

    P, P_v, P_T, density = [mp.mpf(1) / 2] * 2, [mp.mpf(0)] * 2, [mp.mpf(0)] * 2, mp.mpf(0)
    for j in range(10_000):
        u = (j + mp.mpf(1) / 2) * h
        for k, z in enumerate((u - i, u)):  # under the stock as numeraire, and under the bond
            power, in_v, in_T = exponent(z)
            if k == 0:  # the change of numeraire has no derivative
                power, in_T = power - r * T, in_T - r
            f = mp.exp(power) * h / mp.pi
            P[k] += (f / (i * u)).real
            P_v[k] += (f * in_v / (i * u)).real
            P_T[k] += (f * in_T / (i * u)).real
            density += f.real * (k == 0)
        if abs(f) < mp.mpf(10) ** -25:
            break
    bond = mp.exp(-r * T)
    return dict(
        price=100 * (P[0] - bond * P[1]),
        delta=P[0],
        gamma=density / 100,
        vega=100 * (P_v[0] - bond * P_v[1]),
        dv_dt=100 * (P_T[0] - bond * (P_T[1] - r * P[1])),
    )


def recomputed(digits=30):
    """Reference values, by key, by code that shares no line with the chapters."""
    with mp.workdps(digits):
        numbers = [mp.mpf(v) for v in ("0.0175", "1.5768", "0.0398", "0.5751", "-0.5711")]
        for years in (1, 10):
            price = in_thirty_digits(mp.mpf(years), mp.mpf(0), *numbers)["price"]
            yield f"heston.fang_oosterlee.year_{years}", price
            if years == 1:
                quoted = mp.mpf("5.785155450")
                yield "heston.fang_oosterlee.quoted_error", quoted - price
        numbers = [mp.mpf(v) for v in ("1", "0.05", "0.04", "2", "0.04", "0.3", "-0.7")]
        for name, value in in_thirty_digits(*numbers).items():
            yield f"heston.inside.{name}", value
        lowest = mp.findroot(lambda x: mp.exp(x) + x + 1, -1.3)  # of x / (1 + e^-x)
        yield "intervals.silu_minimum", lowest / (1 + mp.exp(-lowest))
        silu = lambda x: x / (1 + mp.exp(-x))  # noqa: E731
        steepest = mp.findroot(lambda x: mp.diff(silu, x, 2), 2.4)
        yield "intervals.silu_prime_maximum", mp.diff(silu, steepest)
        reach = mp.mpf("0.025")
        root = mp.findroot(lambda a: mp.asinh(reach * mp.sinh(a)) - a / 10, 3.3)
        yield "residual.exercise.alpha", root


def feller_share(low, high):
    """Share of Table I's box under the Feller condition, sigma in [low, high], by quadrature."""

    def inner(kappa):
        share = lambda theta: min(max(math.sqrt(2 * kappa * theta) - low, 0), high - low)  # noqa: E731
        kinks = [s**2 / (2 * kappa) for s in (low, high)]
        return quad(share, 0.01, 0.2, points=[k for k in kinks if 0.01 < k < 0.2] or None)[0]

    return quad(inner, 0.5, 3.0, epsabs=1e-10)[0] / (2.5 * 0.19 * (high - low))


def score_waste(basket):
    """Both estimates of Gamma are a hit times a normal score; the wasteful one has noise added."""
    deviation = float(basket.volatility) * math.sqrt(basket.maturity)
    a = (float(basket.strike) - 100) / deviation  # a hit: a normal number above it
    hit, density = erfc(a / math.sqrt(2)) / 2, math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    own = (hit + a * density) / deviation**2  # mean square of hit times own score
    covariance = basket.factor @ basket.factor.T
    foreign = hit * (float(torch.linalg.inv(covariance).sum()) - 1 / deviation**2)
    gamma = density / deviation
    return (own + foreign - gamma**2) / (own - gamma**2)


def best_affine():
    """Mean squared error of the best affine fit to ln(x + y) + cos(y / x) on [1, 10]^2."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x, w = 5.5 + 4.5 * nodes, weights / 2
    x, y, w = (v.ravel() for v in (*np.meshgrid(x, x), np.outer(w, w)))
    f, basis = np.log(x + y) + np.cos(y / x), np.stack([np.ones_like(x), x, y])
    normal = (basis * w) @ basis.T
    fit = np.linalg.solve(normal, (basis * w) @ f) @ basis
    return float(w @ (f - fit) ** 2)


def replaced(softened):
    """Largest distance of a softened payoff from Black-Scholes at a total variance of 0.04."""
    width, spread = math.sqrt(0.04 / (2 * math.pi)) / math.log(2), 0.2

    def gap(k):
        up, down = (0.5 * erfc(-(k / spread + s * spread / 2) / math.sqrt(2)) for s in (1, -1))
        return -abs(softened(math.expm1(k), width) - (math.exp(k) * up - down))

    starts = np.linspace(-1, 1, 41)
    return -min(minimize_scalar(gap, bounds=(k - 0.1, k + 0.1)).fun for k in starts)


QUADRATURES = {
    "heston.feller_volume": lambda: feller_share(0.1, 1.0),
    "heston.feller_share": lambda: feller_share(0.1, 1.0),
    "heston.exercise.share_large_sigma": lambda: feller_share(0.8, 1.0),
    "pathwise.score_waste": lambda: score_waste(bachelier.Basket.random(dim=7, seed=0)),
    "significance.affine_mse": best_affine,
    "ansatz.exercise.ramp": lambda: replaced(lambda v, w: w * math.log1p(math.exp(v / w))),
    "ansatz.exercise.sigmoid": lambda: replaced(lambda v, w: v / (1 + math.exp(-v / w))),
}


@pytest.mark.parametrize("key", QUADRATURES)
def test_a_reference_value_by_quadrature(key):
    entry, value = reference.load()[key], QUADRATURES[key]()
    assert abs(value - entry.value) <= entry.tolerance and entry.evidence == "independent", value


def test_reference_values_in_thirty_digits():
    for key, value in recomputed():
        entry = reference.load()[key]
        assert abs(value - mp.mpf(entry.value)) <= entry.tolerance, (key, mp.nstr(value, 20))
        assert entry.evidence == "independent", key

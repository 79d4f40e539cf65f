"""What the README shows of pruning and Sobolev training, and what it says to wrong input."""

import re
from pathlib import Path

import pytest
import torch

from soundgreeks import Interval, bachelier, networks, significance, sobolev

README = Path(__file__).parents[1] / "README.md"
BASKET = bachelier.Basket.random()
RAW = Interval(torch.full((7,), 40.0), torch.full((7,), 160.0))


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def sample(dtype=torch.float32):
    drawn = BASKET.sample(512, generator=torch.Generator().manual_seed(1))[:3]
    return sobolev.Labels(*(t.to(dtype) for t in drawn))


def standardised(*widths, dtype=torch.float32):
    torch.manual_seed(0)
    data = sample(dtype)
    return sobolev.Standardised(networks.plain(7, *widths).to(dtype), data.x, data.value)


def test_the_readme_prices_and_calibrates(capsys):
    prices, fits, _ = blocks()
    exec(prices + fits, {})
    report = capsys.readouterr().out
    assert "kappa" in report and "RMSE" in report and "edge" not in report


def test_the_readme_prunes_and_trains():
    *_, block = blocks()
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    space: dict = {}
    exec(block, space)
    large, small = space["large"], space["small"]
    assert [len(w) for w in small.network[::2].parameters() if w.ndim == 2] == [3, 3, 1]
    assert (
        sum(p.numel() for p in small.parameters()) < 50 < sum(p.numel() for p in large.parameters())
    )
    x = BASKET.spots(4096, generator=torch.Generator().manual_seed(7))
    found = sobolev.scores(small, x, BASKET.greeks(x))
    assert found.value.r2 > 0.999 and found.delta.r2 > 0.999 and found.gamma.r2 > 0.95


def test_a_standardised_network_is_analysed_in_raw_units():
    """As its plain network in the units that this sees: scores, and what is left."""
    network = standardised(6, 5, 1, dtype=torch.float64)
    box = RAW.to(torch.float64)
    mean, spread = network.x_mean, network.x_std
    inner = (box - mean) / spread
    for a, b in zip(
        significance.of_nodes(network, box, splits=4),
        significance.of_nodes(network.network, inner, splits=4),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    a, b = significance.of_inputs(network, box), significance.of_inputs(network.network, inner)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    x = sample(torch.float64).x
    small = significance.prune(network, [3, 2], box=box, data=x)
    plain = significance.prune(network.network, [3, 2], box=inner, data=(x - mean) / spread)
    assert isinstance(small, sobolev.Standardised)
    torch.testing.assert_close(small(x), network.around(plain)(x))
    # Inside, the raw box would be tens of deviations wide, and every bound with it.
    wrong = significance.of_nodes(network.network, box)[0]
    assert wrong.sum() > 10 * significance.of_nodes(network, box)[0].sum()


def test_boxes_and_data_that_do_not_fit():
    network = standardised(6, 5, 1)
    three = Interval(torch.zeros(3), torch.ones(3))
    for given in (network, network.network):
        with pytest.raises(ValueError, match=r"box must be of shape \(\.\.\., 7\), got \(3,\)"):
            significance.prune(given, [3, 2], box=three)
        with pytest.raises(TypeError, match="data must be of the network's dtype"):
            significance.prune(given, [3, 2], box=RAW, data=sample(torch.float64).x)
    with pytest.raises(ValueError, match=r"data must be of shape \(n, 7\)"):
        significance.hidden_values(network.network, torch.zeros(4, 3))
    with pytest.raises(TypeError, match="float32 or float64"):
        Interval(torch.zeros(7).long(), torch.ones(7).long())
    significance.prune(network, [3, 2], box=RAW.to(torch.float64))  # a box may be finer


def test_several_outputs_can_be_pruned_and_not_trained():
    two = standardised(6, 2)
    assert significance.prune(two.network, [3], box=RAW)(torch.zeros(4, 7)).shape == (4, 2)
    for call in (
        lambda: two(sample().x),
        lambda: sobolev.differentiate(two.network, sample().x),
        lambda: sobolev.fit(two, sobolev.resample(sample()), steps=1, batch=8),
    ):
        with pytest.raises(ValueError, match=r"one output a row, .* got \(\d+, 2\)"):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_labels_of_another_dtype(dtype):
    network = standardised(6, 1)
    with pytest.raises(TypeError, match=r"must be of .* got torch"):
        sobolev.fit(network, sobolev.resample(sample(dtype)), steps=1)
    with pytest.raises(TypeError, match=r"must be of .* got torch"):
        sobolev.differentiate(network, sample(dtype).x)


def test_the_front_picture_can_be_drawn(tmp_path):
    code = README.parent / "book/images/front.py"
    text = code.read_text().replace("range(1500)", "range(2)")
    exec(text, {"__file__": str(tmp_path / "front.py"), "__name__": "front"})
    assert (tmp_path / "front.png").stat().st_size > 10_000

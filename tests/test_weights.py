"""Weights: what is written is read, what is damaged or foreign is refused, ranges are watched."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from soundgreeks import evaluation, heston, networks, weights
from soundgreeks.operators import PRESETS, Operator
from soundgreeks.pruning.sobolev import Standardised
from soundgreeks.weights import WeightsError

F64 = torch.float64
P = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)


@pytest.fixture
def stored(tmp_path):
    operator = Operator(PRESETS["smoke"])
    weights.save(operator, tmp_path / "net", {"profile": "smoke", "metrics": {}})
    return operator, tmp_path / "net"


def test_round_trip(stored):
    operator, path = stored
    loaded = weights.load(path)
    assert loaded.config == operator.config and loaded.dtype == F64
    assert loaded.provenance["versions"]["torch"].startswith("2.")
    x = torch.linspace(-1, 1, 5, dtype=F64)
    torch.testing.assert_close(
        loaded.price(x, 0.04, 0.5, P), operator.double().price(x, 0.04, 0.5, P)
    )


def test_damage_is_noticed(stored):
    _, path = stored
    file = path.with_suffix(".safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"net.safetensors is damaged: its SHA-256"):
        weights.load(path)


def test_foreign_files_are_refused(stored, tmp_path):
    _, path = stored
    record = path.with_suffix(".json")
    about = json.loads(record.read_text())
    record.write_text(json.dumps(about | {"format": "other/9"}))
    with pytest.raises(WeightsError, match="is not a provenance of format"):
        weights.load(path)
    record.write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        weights.load(path)
    record.unlink()
    with pytest.raises(WeightsError, match=r"there is no net\.json"):
        weights.load(path)
    with pytest.raises(WeightsError, match="name must be one of"):
        weights.load("no such network")


def test_another_kind_or_configuration_is_refused(stored):
    operator, path = stored
    weights.write(path, operator.state_dict(), {"kind": "teacher"})
    with pytest.raises(WeightsError, match="must hold an operator, got 'teacher'"):
        weights.load(path)
    config = replace(operator.config, width=17).to_dict()
    weights.write(path, operator.state_dict(), {"kind": "operator", "config": config})
    with pytest.raises(WeightsError, match="does not fit its own configuration"):
        weights.load(path)
    broken = {k: v * torch.nan for k, v in operator.state_dict().items()}
    weights.write(path, broken, {"kind": "operator", "config": operator.config.to_dict()})
    with pytest.raises(WeightsError, match="weights that are not finite"):
        weights.load(path)


def test_not_safetensors(tmp_path):
    import hashlib

    (tmp_path / "net.safetensors").write_bytes(b"pickle")
    record = {"format": "soundgreeks/1", "sha256": hashlib.sha256(b"pickle").hexdigest()}
    (tmp_path / "net.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load(tmp_path / "net")


def test_outside_the_range_of_training_it_warns(stored):
    operator = stored[0].double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator.price(torch.tensor([-2.0, 2.0]), 0.01, 1.0, P)
        operator.to(torch.float32).price(torch.tensor(0.0), 0.4, 0.5, P)
    with pytest.warns(UserWarning, match=r"nu = 0.5 is outside \[0.01, 0.4\]"):
        operator.price(0.0, 0.5, 0.5, P)
    with pytest.warns(UserWarning, match=r"kappa = 5 is outside \[0.5, 3.0\]"):
        operator.greeks(0.0, 0.1, 0.5, heston.Parameters(5.0, 0.04, 0.3, -0.7, 0.05))
    with pytest.warns(UserWarning, match="outside the Feller condition"):
        operator.price(0.0, 0.1, 0.5, heston.Parameters(0.5, 0.04, 0.3, -0.7, 0.05))


def test_pieces_change_nothing(stored):
    operator = stored[0].double()
    x = torch.linspace(-1, 1, 50, dtype=F64)
    for p in (P, heston.sample_parameters(50), heston.sample_parameters(3)[:, None]):
        operator.chunk = 7
        pieces = operator.greeks(x, 0.04, 0.5, p)
        price = operator.price(x, 0.04, 0.5, p)
        operator.chunk = 10_000
        for a, b in zip(operator.greeks(x, 0.04, 0.5, p), pieces, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(price, pieces.price, rtol=1e-12, atol=1e-14)


def test_bad_input_is_named(stored):
    operator = stored[0]
    with pytest.raises(ValueError, match=r"nu must be non-negative and finite, got -0\.1"):
        operator.price(0.0, -0.1, 0.5, P)
    with pytest.raises(ValueError, match="tau must be non-negative and finite, got nan"):
        operator.greeks(0.0, 0.1, float("nan"), P)
    with pytest.raises(ValueError, match="shapes do not broadcast"):
        operator.price(torch.zeros(3), 0.1, 0.5, heston.sample_parameters(4))


@pytest.mark.parametrize("name", weights.available())
def test_what_is_shipped_loads_and_measures_as_it_says(name):
    try:
        operator = weights.load(name)
    except WeightsError as error:
        assert "must hold an operator" in str(error)
        return
    said = operator.provenance["metrics"]["all"]
    found = evaluation.errors(operator, evaluation.draw(seed=2024, n=2_000))["all"]
    assert found["price rmse"] < 1.5 * said["price rmse"]
    assert found["delta rmse"] < 2 * said["delta rmse"]


def test_the_anchored_operator_is_as_good_as_promised():
    """Fresh points each run, over Table I under Feller and tau in [0.005, 1]."""
    seed = torch.seed() % 2**31
    table = evaluation.evaluate(weights.load("sound"), seed)
    assert table["all"]["price rmse"] <= 5e-5, seed
    assert max(row["price worst"] for k, row in table.items() if k != "curves") <= 1e-3, seed
    assert table["curves"]["worst negative Gamma"] >= -1e-4, seed


# Groups of plain networks


@pytest.fixture
def group():
    torch.manual_seed(0)
    x = 100 + 30 * torch.randn(64, 3)
    frame = Standardised(torch.nn.Identity(), x, x.sum(1))
    sizes = {"big": (3, 8, 8, 1), "small 2-1.0": (3, 2, 1, 1), "small 2-1.10": (3, 2, 1, 1)}
    return {name: frame.around(networks.plain(*s)) for name, s in sizes.items()}, x


def test_networks_round_trip(group, tmp_path):
    group, x = group
    weights.write_networks(tmp_path / "group", group, {"seed": 3})
    found, provenance = weights.read_networks(tmp_path / "group")
    assert list(found) == list(group) and provenance["seed"] == 3
    assert {"big.0.weight", "small 2-1.10.2.bias"} <= set(weights.read(tmp_path / "group")[0])
    for name, network in found.items():
        assert torch.equal(network(x), group[name](x))
        assert not any(p.requires_grad for p in network.parameters())


def test_networks_that_do_not_belong_together_are_refused(group, tmp_path):
    group, x = group
    stranger = Standardised(networks.plain(3, 2, 1), 2 * x, x.sum(1))
    relu = group["big"].around(networks.plain(3, 2, 1, activation=torch.nn.ReLU))
    for bad, message in (
        ({}, "group must be names"),
        ({"frame": group["big"]}, "group must be names"),
        (group | {"other": stranger}, "one standardisation, got 'other'"),
        (group | {"other": relu}, "one activation"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.write_networks(tmp_path / "group", bad, {})


def test_a_file_without_networks_is_refused(stored, group, tmp_path):
    with pytest.raises(WeightsError, match="must hold networks, got 'operator'"):
        weights.read_networks(stored[1])
    path = tmp_path / "group"
    weights.write_networks(path, group[0], {})
    record = path.with_suffix(".json")
    about = json.loads(record.read_text())
    for change in ({"networks": ["none"]}, {"activation": "NoSuch"}, {"networks": 3}):
        record.write_text(json.dumps(about | change))
        with pytest.raises(WeightsError, match="does not hold plain networks"):
            weights.read_networks(path)
    tensors, _ = weights.read(tmp_path / "group")
    tensors["big.0.bias"][0] = torch.nan
    about = {k: about[k] for k in ("kind", "activation", "networks")}
    weights.write(path, tensors, about)
    with pytest.raises(WeightsError, match="not finite"):
        weights.read_networks(path)


def test_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space = {}
    exec(block, space)
    exact = heston.call(0.0, 0.04, 0.5, space["p"])
    torch.testing.assert_close(
        space["operator"].price(0.0, 0.04, 0.5, space["p"]), exact, rtol=0, atol=1e-4
    )

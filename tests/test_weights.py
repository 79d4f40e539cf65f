"""Weights: what is written is read, what is damaged or foreign is refused, ranges are watched."""

import json
import re
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


def test_an_edited_configuration_is_refused(stored):
    """Another ansatz or activation fits the same tensors and prices something else."""
    record = stored[1].with_suffix(".json")
    about = json.loads(record.read_text())
    for change in ({"ansatz": "implied"}, {"activation": "silu"}):
        record.write_text(json.dumps(about | {"config": about["config"] | change}))
        with pytest.raises(WeightsError, match=r"net\.json does not say what .* it was edited"):
            weights.load(stored[1])


def test_the_first_format_is_read(stored):
    """Configurations by edges of Heston's domain, a checksum of tensors alone."""
    operator, path = stored
    record = path.with_suffix(".json")
    about = json.loads(record.read_text())
    config = {k: v for k, v in about["config"].items() if k not in ("model", "claim", "domain")}
    config |= dict(nu_low=1e-4, nu_high=0.8, x_half=2.5, tau_low=5e-4, features="plain")
    config["feller_share"] = config.pop("edge_share")
    for phase in config["phases"]:
        del phase["schedule"], phase["decay"]
    del about["identity_sha256"]
    record.write_text(json.dumps(about | {"format": "soundgreeks/1", "config": config}))
    found = weights.load(path).config
    assert found.domain == PRESETS["sound_small"].domain and found.model == "heston"
    assert replace(found, domain=operator.config.domain) == operator.config


def test_dots_belong_to_the_name_and_writing_is_atomic(stored, tmp_path, monkeypatch):
    operator, _ = stored
    for name in ("run-1.2", "run-1.3"):
        weights.save(operator, tmp_path / name, {"note": name})
    for name in ("run-1.2", "run-1.3"):
        assert weights.load(tmp_path / name).provenance["note"] == name
    before = (tmp_path / "run-1.2.safetensors").read_bytes()

    def dies(self, data):
        Path.write_text(self, "half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(OSError, match="disk full"):
        weights.save(operator, tmp_path / "run-1.2", {"note": "new"})
    monkeypatch.undo()
    assert (tmp_path / "run-1.2.safetensors").read_bytes() == before
    assert weights.load(tmp_path / "run-1.2").provenance["note"] == "run-1.2"


def test_a_local_file_of_a_shipped_name_is_not_ignored_in_silence(stored, tmp_path, monkeypatch):
    weights.save(stored[0], tmp_path / "sound", {"note": "mine"})
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"write '\./sound' for that") as caught:
        assert weights.load("sound").config.name == "sound"
    assert caught[0].filename == __file__
    assert weights.load("./sound").provenance["note"] == "mine"


def test_not_safetensors(tmp_path):
    import hashlib

    (tmp_path / "net.safetensors").write_bytes(b"pickle")
    record = {"format": "soundgreeks/1", "sha256": hashlib.sha256(b"pickle").hexdigest()}
    (tmp_path / "net.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load(tmp_path / "net")


OPERATORS = [
    "american_put", "deepsvm", "down_and_out", "garch", "lognormal", "paper_anchor",
    "paper_implied", "paper_points", "rough_heston", "sound", "sound_corrected", "sound_log",
    "sound_small", "sound_wide",
]  # fmt: skip


def test_what_is_shipped_is_an_operator_or_a_group():
    kinds = {name: weights.read(name)[1]["kind"] for name in weights.available()}
    assert [name for name, kind in kinds.items() if kind == "operator"] == OPERATORS
    for name, kind in kinds.items():
        if kind != "operator":
            assert kind == "networks" and weights.read_networks(name)[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_shipped_loads_and_measures_as_it_says(name):
    operator = weights.load(name)
    if not operator.claim.european:  # no formula knows it: tests/test_other_claims.py has a judge
        said = operator.provenance["metrics"]["loss"]
        assert evaluation.fresh_loss(operator)["physics"] < 1.5 * said["physics"]
        return
    said = operator.provenance["metrics"]["all"]
    data = evaluation.draw(seed=2024, n=2_000, model=operator.model)
    found = evaluation.errors(operator, data)["all"]
    if not operator.model.closed_form:  # the truth is simulated, and the worse of the two
        assert found["price rmse"] < 2 * found["of the truth"]
        return
    assert found["price rmse"] < 1.5 * said["price rmse"]
    assert found["delta rmse"] < 2 * said["delta rmse"]


def test_the_anchored_operator_is_as_good_as_promised():
    """Over Table I under Feller and tau in [0.005, 1]; points of one seed, and fresh ones."""
    for seed in (2024, torch.seed() % 2**31):
        table = evaluation.evaluate(weights.load("sound"), seed)
        assert table["all"]["price rmse"] <= 6e-7, seed
        # Of 31 seeds the worst region's worst was 6e-6 in the median, 1.5e-5 once: a heavy tail.
        bound = 1.2e-5 if seed == 2024 else 4e-5
        assert max(row["price worst"] for row in table.values() if "points" in row) <= bound, seed
        assert table["all"]["delta rmse"] <= 4e-6, seed
        assert table["curves"]["worst negative Gamma"] >= -1e-7, seed


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
        with pytest.raises(WeightsError, match=r"group.json does not say what .* it was edited"):
            weights.read_networks(path)
        first = {"format": "soundgreeks/1"}  # whose checksum did not cover them
        record.write_text(json.dumps(about | change | first))
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
    block, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)  # test_web_readme: the others
    space = {}
    exec(block, space)
    exact = heston.call(0.0, 0.04, 0.5, space["p"])
    torch.testing.assert_close(
        space["operator"].price(0.0, 0.04, 0.5, space["p"]), exact, rtol=0, atol=1e-4
    )

"""One place says where to compute and what a result depends on."""

import subprocess
import sys

import pytest
import torch

from soundgreeks import _environment as environment


@pytest.mark.parametrize(
    "name", ["meta", "mps", "float16", "cpu:0", "cuda:-1", "cuda:99", "", None]
)
def test_what_is_no_device_here_is_refused(name):
    with pytest.raises(ValueError, match="device must be 'auto' or one of 'cpu'"):
        environment.select_device(name)


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    for count in (0, 2):
        monkeypatch.setattr(torch.cuda, "is_available", lambda n=count: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=count: n)
        assert environment.select_device().type == ("cuda" if count else "cpu")
        assert environment.select_device("cpu").type == "cpu"
    assert environment.select_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:0', 'cuda:1' on this machine"):
        environment.select_device("cuda:2")


def test_the_environment_names_versions_and_machine():
    found = environment.environment()
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["soundgreeks"] and found["threads"] == torch.get_num_threads()
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["processor"]


def test_a_package_that_is_absent_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("torch", "no-such-package"))
    assert list(environment.environment()["versions"]) == ["torch"]


def test_the_library_imports_no_more_than_it_depends_on():
    """matplotlib and the tools of the book come with extras, which a user may not have."""
    extra = {"matplotlib", "nbformat", "papermill", "yaml", "IPython"}
    script = "import sys, soundgreeks.book.cli; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "soundgreeks" in result.stdout.split() and not extra & set(result.stdout.split())


@pytest.mark.gpu
def test_a_gpu_is_found_and_named():
    device = environment.select_device()
    assert device.type == "cuda"
    assert torch.ones(2, device=device).sum() == 2
    assert environment.device_name(device) == torch.cuda.get_device_name(0)

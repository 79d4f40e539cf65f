"""The runner rejects what it must, survives being killed, and promotes in one step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from soundgreeks.book import chapter, cli, runner

CODE = nbformat.v4.new_code_cell
PARAMETERS = 'profile = "read"\ndevice = "auto"\nseed = 0'


def notebook(*cells: str, checked: bool = False) -> nbformat.NotebookNode:
    """A small chapter: parameters, the given cells, the sentinel."""
    tagged = CODE(PARAMETERS, metadata={"tags": ["parameters"]})
    check = CODE(
        "from soundgreeks.book.reference import check\ncheck('heston.feller_share', 0.5179);",
        metadata={"tags": ["nbval-check-output"]},
    )
    body = [check] * checked + [CODE(source) for source in cells]
    last = CODE(f"print({chapter.SENTINEL!r})")
    book = nbformat.v4.new_notebook(cells=[tagged, *body, last])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    return book


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a project with one chapter and returns the chapter's path."""
    book = tmp_path / "book"
    book.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (book / "_toc.yml").write_text("root: intro\nparts:\n- chapters:\n  - file: 01_one\n")
    (tmp_path / ".gitignore").write_text("build/\n")
    monkeypatch.chdir(tmp_path)

    def make(*cells: str, checked: bool = False) -> Path:
        path = book / "01_one.ipynb"
        nbformat.write(notebook(*cells, checked=checked), path)
        return path

    return make


def soundgreeks(*arguments, **options):
    command = [sys.executable, "-m", "soundgreeks", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["02_two"], "chapter must be one of 01_one, got '02_two'"),
        (["--profile", "quick"], "profile must be one of"),
        (["--device", "cuda:99"], "device must be 'auto' or one of 'cpu'"),
        (["--device", "gpu"], "got 'gpu'"),
        (["--set", "epochs=3"], "parameter must be one of profile, device, seed, got 'epochs'"),
        (["--set", "epochs"], "must be NAME=VALUE"),
        (["--timeout", "0"], "timeout must be a positive number of seconds, got 0"),
        (["--seed", "-1"], "seed must be an integer in [0, 2**31), got -1"),
        (["--out", "book"], "out must lie outside the book"),
    ],
)
def test_bad_input_is_one_clear_error(project, capsys, arguments, named):
    path = project()
    before = path.read_bytes()
    assert cli.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert path.read_bytes() == before and not (path.parents[1] / "build").exists()


def test_run_leaves_the_committed_notebook_and_promote_is_idempotent(project, capsys):
    path = project("import sys; print('x', file=sys.stderr); print('a')", checked=True)
    before = path.read_bytes()
    assert cli.main(["run", "1"]) == 0
    assert path.read_bytes() == before
    assert cli.main(["run", "--promote"]) == 0
    first = path.read_bytes()
    assert first != before
    assert b"papermill" not in first and b"iopub" not in first
    promoted = nbformat.read(path, 4)
    assert [(o.name, o.text) for o in promoted.cells[2].outputs] == [("stdout", "a\n")]
    assert runner.faults(promoted) == []
    assert cli.main(["run", "--promote"]) == 0
    assert path.read_bytes() == first
    assert "unchanged" in capsys.readouterr().out
    assert cli.main(["status"]) == 0
    assert "finished | read | cpu" in capsys.readouterr().out


def test_other_parameters_run_but_are_not_promoted(project, capsys):
    path = project("assert seed == 7")
    before = path.read_bytes()
    assert cli.main(["run", "--seed", "7", "--promote"]) == 2
    assert "other parameters than its own" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "cell, reason, options",
    [
        ("raise ValueError('broken')", "cell [2] raised ValueError: broken", []),
        ("import sys; sys.exit(0)", "did not finish", []),
        ("import time; time.sleep(60)", "did not finish", ["--timeout", "2"]),
        ("import os; os._exit(1)", "did not finish", ["--timeout", "5"]),
    ],
)
def test_a_chapter_that_does_not_reach_its_end_fails(project, capsys, cell, reason, options):
    path = project(cell)
    before = path.read_bytes()
    assert cli.main(["run", "--promote", *options]) == 1
    assert reason in capsys.readouterr().err
    assert path.read_bytes() == before
    assert runner.read_records(path.parents[1])["01_one"]["state"] == "failed"


def test_a_missing_sentinel_fails(project, capsys):
    path = project()
    chapter_ = nbformat.read(path, 4)
    chapter_.cells[-1].source = "pass"
    nbformat.write(chapter_, path)
    assert cli.main(["run"]) == 1
    assert "the last cell did not print" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_the_repository_as_it_was(project, number):
    path = project(
        "open('started', 'w').write(str(__import__('os').getpid()))", "import time; time.sleep(120)"
    )
    root, started = path.parents[1], path.parent / "started"
    git = lambda *a: subprocess.run(["git", *a], cwd=root, check=True, capture_output=True)  # noqa: E731
    git("init", "-q"), git("add", "-A")
    process = soundgreeks("run", "--promote")
    until = time.monotonic() + 60
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.1)
    kernel = int(started.read_text())
    started.unlink()
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=90)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True)
    assert b" M" not in status.stdout and b"??" not in status.stdout
    assert runner.read_records(root)["01_one"]["state"] == "unfinished"
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert "Stopped in 01_one. The committed notebook is as it was." in error
        assert "Nothing was done before." in error and "Traceback" not in error
    until = time.monotonic() + 20
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != "zombie":
        assert time.monotonic() < until, "the kernel outlives its run"
        time.sleep(0.2)


def test_a_parameters_cell_holds_literals_only():
    bad = notebook()
    bad.cells[0].source = "profile = 'read'\ndevice = pick()\nseed = 0"
    with pytest.raises(ValueError, match="literals only"):
        runner.parameters(bad)


@pytest.mark.parametrize(
    "keyword, value",
    [("profile", "x"), ("device", "tpu"), ("seed", -1), ("seed", 1.5), ("seed", True)],
)
def test_begin_rejects(keyword, value):
    with pytest.raises(ValueError, match=f"{keyword} must be .*got {value!r}"):
        chapter.begin(**{keyword: value})


def test_write_is_atomic(tmp_path, monkeypatch):
    target = tmp_path / "one.ipynb"
    target.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.write(notebook(), target, tmp_path / "scratch")
    assert target.read_text() == "old"

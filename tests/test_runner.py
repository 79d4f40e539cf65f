"""The runner rejects what it must, survives being killed, and promotes in one step."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from jupyter_client.manager import start_new_kernel

from soundgreeks import weights
from soundgreeks.book import chapter, cli, commands, runner, warm
from soundgreeks.operators import PricingProblem

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
        (["--device", "meta"], "got 'meta'"),
        (["--device", "float16"], "got 'float16'"),
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


def test_a_chapter_of_two_pages_is_found_by_number_and_letter(project):
    first = project()
    book, second = first.parent, first.with_name("01b_more.ipynb")
    second.write_bytes(first.read_bytes())
    contents = book / "_toc.yml"
    contents.write_text(contents.read_text() + "  - file: 01b_more\n")
    for name, path in {"1": first, "01": first, "1b": second, "01b": second}.items():
        assert list(runner.select(book, [name]).values()) == [path]
    for unknown in ("b", "01c", "1_"):
        with pytest.raises(ValueError, match="chapter must be one of 01_one, 01b_more"):
            runner.select(book, [unknown])


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
    shown = capsys.readouterr().out
    assert "finished | read | cpu" in shown and f"torch {torch.__version__}" in shown
    assert f"python {sys.version_info.major}" in shown


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


def test_a_chapter_that_fails_does_not_stop_the_others(project, capsys, monkeypatch):
    first = project()
    first.with_name("02_two.ipynb").write_bytes(first.read_bytes())
    contents = first.with_name("_toc.yml")
    contents.write_text(contents.read_text() + "  - file: 02_two\n")

    def run(name, path, **_):
        if name == "01_one":
            raise runner.Unfinished("01_one did not finish")
        return nbformat.read(path, 4)

    monkeypatch.setattr(runner, "run", run)
    assert cli.main(["run"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("02_two: finished") and err == "soundgreeks: 01_one did not finish\n"


def test_a_missing_sentinel_fails(project, capsys):
    path = project()
    chapter_ = nbformat.read(path, 4)
    chapter_.cells[-1].source = "pass"
    nbformat.write(chapter_, path)
    assert cli.main(["run"]) == 1
    assert "the last cell did not print" in capsys.readouterr().err


def test_a_cell_that_never_ran_is_no_complete_run():
    """nbval passes over such a cell in silence, and the last one may still print the sentinel."""
    said = [nbformat.v4.new_output("stream", text=chapter.SENTINEL + "\n")]
    cells = [
        CODE("1 + 1", execution_count=1),
        CODE("2 + 2"),
        nbformat.v4.new_markdown_cell("Prose is not executed."),
        CODE("end()", execution_count=3, outputs=said),
    ]
    with pytest.raises(runner.Unfinished, match=r"code cells \[2\] were not executed"):
        runner.require_complete(nbformat.v4.new_notebook(cells=cells))
    cells[1].execution_count = 2
    runner.require_complete(nbformat.v4.new_notebook(cells=cells))


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
        assert "01_one did not finish; its committed notebook is as it was." in error
        assert "Done before: nothing." in error and "Traceback" not in error
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
        runner.write(notebook(), target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


# --- Where results go ------------------------------------------------------------------------


def no_run(*_, **__):
    raise AssertionError("the chapter ran")


@pytest.fixture
def crossing(monkeypatch):
    """A function that makes a folder another file system: moving a file into or out of it fails."""

    def make(folder: Path) -> None:
        whole = os.replace

        def replace(source, target):
            sides = {Path(p).resolve().is_relative_to(folder.resolve()) for p in (source, target)}
            if len(sides) == 2:
                raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
            whole(source, target)

        monkeypatch.setattr(os, "replace", replace)

    return make


def test_out_may_lie_on_another_file_system(project, tmp_path, crossing):
    project()
    crossing(tmp_path / "elsewhere")
    assert cli.main(["run", "--out", str(tmp_path / "elsewhere")]) == 0
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["01_one.ipynb"]


def refuse(number: int):
    """Whatever is asked of the disk fails with this error."""

    def refused(*arguments, **_):
        raise OSError(number, os.strerror(number), str(arguments[0]))

    return refused


@pytest.mark.parametrize(
    "what, number",
    [
        ("a file", None),
        ("full", errno.ENOSPC),
        ("read-only", errno.EROFS),
        ("no quota", errno.EDQUOT),
    ],
)
def test_out_is_tried_before_the_chapter_runs(project, capsys, monkeypatch, what, number):
    project()
    monkeypatch.setattr(runner, "run", no_run)
    if number is None:
        Path("out").touch()
    elif number == errno.EROFS:
        monkeypatch.setattr(Path, "mkdir", refuse(number))
    else:
        monkeypatch.setattr(os, "fsync", refuse(number))
    assert cli.main(["run", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert "out must be a folder with room to write, got" in error and error.count("\n") == 1
    assert os.strerror(number or errno.EEXIST) in error


def test_a_checkout_that_cannot_be_written_to_runs_and_stays_as_it_is(
    project, tmp_path, monkeypatch, capsys
):
    root = project().parents[1]
    access, state = os.access, tmp_path / "state"
    writable = lambda path, mode: access(path, mode) and Path(path) != root  # noqa: E731
    monkeypatch.setattr(os, "access", writable)
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    state.mkdir()
    before = {p for p in root.rglob("*") if not p.is_relative_to(state)}
    assert cli.main(["run"]) == 0
    assert cli.main(["run", "--out", str(state / "out")]) == 0
    assert {p for p in root.rglob("*") if not p.is_relative_to(state)} == before
    assert (state / "out/01_one.ipynb").is_file()
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    assert "finished | read | cpu" in capsys.readouterr().out


def test_without_a_state_folder_runs_go_to_the_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert runner.workspace(tmp_path / "one").parent == tmp_path / "temporary"
    assert runner.workspace(tmp_path / "one") != runner.workspace(tmp_path / "two")


MEET = """
from pathlib import Path
import time

def both(what):
    Path(f"{what}_{seed}").touch()
    while not (Path(f"{what}_1").exists() and Path(f"{what}_2").exists()):
        time.sleep(0.05)

both("arrived")
found = len(list(Path("../build/running").glob("*.ipynb")))
both("looked")
print("seed", seed, "beside", found)
"""


def test_two_runs_of_a_chapter_do_not_meet(project):
    """While both run there are two partial notebooks, and each ends as its own."""
    root = project(MEET).parents[1]
    runs = [soundgreeks("run", "--seed", seed, "--out", f"out_{seed}") for seed in "12"]
    for seed, process in zip("12", runs, strict=True):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert f"seed {seed} beside 2" in (root / f"out_{seed}/01_one.ipynb").read_text()
    assert runner.read_records(root)["01_one"]["state"] == "finished"
    assert list((root / "build/running").iterdir()) == []


def test_a_record_is_written_in_one_step(tmp_path, monkeypatch):
    record = {"chapter": "01_one", "when": "", "state": "x", "profile": "read", "device": "cpu"}
    record["versions"] = {}
    runner.write_record(tmp_path, record)
    whole = Path.write_text

    def full(path, text, *arguments, **options):
        whole(path, text[:9], *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        runner.write_record(tmp_path, record | {"state": "y"})
    assert runner.read_records(tmp_path)["01_one"]["state"] == "x"
    assert len(list((tmp_path / "build/runs").iterdir())) == 1


# --- One line where something is wrong -------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"when": 1}'])
def test_a_damaged_record_is_named(project, capsys, text):
    root = project().parents[1]
    (root / "build/runs").mkdir(parents=True)
    (root / "build/runs/01_one.json").write_text(text)
    assert cli.main(["status"]) == 2
    error = capsys.readouterr().err
    assert f"{root}/build/runs/01_one.json is damaged: delete it" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "parts: 3", "parts: [{chapters: [1]}]", "a: [", "a:\n - b\n  c: d", "\xff"]
)
def test_a_damaged_table_of_contents_is_named(project, capsys, text):
    contents = project().parent / "_toc.yml"
    contents.write_bytes(text.encode("latin-1"))
    assert cli.main(["list"]) == 2
    error = capsys.readouterr().err
    assert f"{contents} is damaged: " in error and error.count("\n") == 1


FOUR = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [%s]}'
BAD_CELLS = (FOUR % "1", FOUR % '{"cell_type": "raw", "id": "a", "metadata": {}}')


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"nbformat": 4}', *BAD_CELLS])
def test_a_damaged_notebook_is_named(project, capsys, text):
    path = project()
    path.write_text(text)
    assert cli.main(["run"]) == 2
    error = capsys.readouterr().err
    assert f"{path} is damaged: not a notebook" in error and error.count("\n") == 1


def test_an_error_of_the_system_is_one_line(project, capsys, monkeypatch):
    project()
    monkeypatch.setattr(runner, "run", refuse(errno.ENOSPC))
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == "soundgreeks: 01_one: No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error(project):
    project()
    process = soundgreeks("list")
    process.stdout.close()  # before the first line is written
    process.stdout = None
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141


@pytest.mark.parametrize("command", [["run"], ["list"], ["status"]])
def test_ctrl_c_at_any_time_is_one_line(project, capsys, monkeypatch, command):
    project()
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(runner, "chapters", lambda book: signal.raise_signal(signal.SIGINT))
    assert cli.main(command) == 130
    assert capsys.readouterr().err == "\nStopped.\n"
    assert signal.getsignal(signal.SIGINT) == handler


STOPPED_AT_IMPORT = """
import builtins, signal, sys
from soundgreeks import __main__ as entry
usual = builtins.__import__
def stopped(*arguments):
    builtins.__import__ = usual
    signal.raise_signal(signal.SIGINT)
builtins.__import__ = stopped
sys.exit(entry.main())
"""


def test_ctrl_c_while_the_command_is_imported_is_one_line():
    """The import takes seconds: it is then that people notice that they meant another chapter."""
    command = [sys.executable, "-c", STOPPED_AT_IMPORT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\nStopped.\n")


def test_names_that_the_shell_would_not_know():
    assert cli.extras(["a=1", "b=x", "c=[1, 2]"]) == {"a": 1, "b": "x", "c": [1, 2]}


# --- What is not installed -------------------------------------------------------------------


def without(modules: str, *arguments, **options) -> subprocess.CompletedProcess:
    """The command in a Python where importing any of these fails."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r}))\n"
        "from soundgreeks.book import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


EXTRAS = "nbformat nbclient papermill yaml matplotlib IPython ipykernel QuantLib"


@pytest.mark.parametrize(
    "module, command",
    [
        ("yaml", "list"),
        ("yaml", "status"),
        ("yaml", "run"),
        ("nbformat", "run"),
        ("papermill", "run"),
    ],
)
def test_what_a_command_lacks_is_said_in_one_line(project, module, command):
    project()
    result = without(module, command)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"soundgreeks: {module} is missing; pip install -e '.[run]'")
    assert result.stderr.count("\n") == 1 and not Path("build").exists()


def test_training_and_evaluation_need_the_library_alone(tmp_path):
    """Nor torch's compiler, whose import would take as long as torch's own."""
    trained = without(f"{EXTRAS} torch._dynamo", "train", "smoke", "--out", str(tmp_path))
    assert trained.returncode == 0, trained.stderr
    file = str(tmp_path / "smoke.safetensors")
    evaluated = without(EXTRAS, "evaluate", file, "--points", "200", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "negative Gammas" in evaluated.stdout


# --- Training and evaluation -----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("evaluate sound --device meta", "device must be 'auto' or one of 'cpu'"),
        ("evaluate sound --device float16", "got 'float16'"),
        ("evaluate sound --points 0", "points must be at least 100, got 0"),
        ("evaluate sound --seed -1", "seed must be an integer in [0, 2**31), got -1"),
        ("evaluate pruned", "must hold an operator"),
        ("train smoke --out run --device cuda:99", "device must be"),
        ("train smoke --out run --seed -1", "seed must be"),
        ("train smoke --out run --evaluation-seed -1", "evaluation_seed must be"),
        ("train smoke --out file", "out must be a folder with room to write, got file"),
    ],
)
def test_bad_input_to_training_and_evaluation(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_train", no_run)
    Path("file").touch()
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_evaluate_offers_operators_alone(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    offered = text[text.index("one of") : text.index("or a")]
    assert "sound" in offered and "deepsvm" in offered
    assert not any(name in offered for name in ("pruned", "oversized", "rivals", "finetuned"))
    assert all(weights.read(name)[1]["kind"] == "operator" for name in commands.operators())


def test_ctrl_c_in_evaluate_is_one_line(capsys, monkeypatch):
    stop = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
    monkeypatch.setattr(commands.evaluation, "evaluate", stop)
    assert cli.main(["evaluate", "sound"]) == 130
    assert capsys.readouterr().err == "\nStopped.\n"


@pytest.mark.parametrize("saved", [True, False])
def test_ctrl_c_in_train_says_whether_a_checkpoint_is_there(tmp_path, capsys, monkeypatch, saved):
    def train_operator(config, directory, **_):
        if saved:
            (directory / "checkpoint.pt").touch()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(commands, "train_operator", train_operator)
    assert cli.main(["train", "smoke", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert ("checkpoint.pt is saved: the same command goes on" in error) == saved
    assert ("There is no checkpoint" in error) != saved and error.strip().count("\n") == 0


def test_ctrl_c_in_train_saves(tmp_path, capsys, monkeypatch):
    begin = PricingProblem.begin

    def stopped(self, *arguments):
        if arguments[-1] == 3:
            signal.raise_signal(signal.SIGINT)
        begin(self, *arguments)

    monkeypatch.setattr(PricingProblem, "begin", stopped)
    assert cli.main(["train", "smoke", "--out", str(tmp_path)]) == 130
    assert "checkpoint.pt is saved" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_line(tmp_path, capsys, monkeypatch):
    def train_operator(*_, **__):
        raise FloatingPointError("loss is nan at step 3")

    monkeypatch.setattr(commands, "train_operator", train_operator)
    assert cli.main(["train", "smoke", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "soundgreeks: loss is nan at step 3\n"


@pytest.mark.skipif(sys.platform != "linux", reason="kernels start cold elsewhere")
def test_kernels_start_warm_and_can_be_interrupted(monkeypatch, tmp_path):
    monkeypatch.delenv("JUPYTER_DEFAULT_PROVISIONER_NAME", raising=False)
    warm.prefer()
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        known = (
            f"import os, sys; assert 'torch' in sys.modules and os.getcwd() == {str(tmp_path)!r}"
        )
        reply = client.execute(known, reply=True, timeout=60)
        assert reply["content"]["status"] == "ok", reply["content"]
        client.execute("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
        while "image/png" not in client.get_iopub_msg(timeout=60)["content"].get("data", {}):
            pass
        # Between two cells a kernel ignores an interrupt: only what the cell prints tells it runs.
        message = client.execute("print('running')\nwhile True: pass")
        while client.get_iopub_msg(timeout=60)["content"].get("text") != "running\n":
            pass
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != message:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert not manager.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels start cold elsewhere")
def test_a_program_that_starts_a_warm_kernel_runs_once():
    program = """
from jupyter_client.manager import start_new_kernel
from soundgreeks.book import warm
print("once")
warm.prefer()
manager, client = start_new_kernel(kernel_name="python3")
client.stop_channels()
manager.shutdown_kernel(now=True)
"""
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("once") == 1, done.stderr

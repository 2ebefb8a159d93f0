"""What scripts leave in their logs."""

import logging
import os
from pathlib import Path

import pytest
import torch

import kproba
from kproba.bank.description import find_description
from kproba.data.kinds import KINDS
from kproba.data.tasks import parse_task
from kproba.methods.losses import step as losses
from kproba.runtime.devices import lock_file
from kproba.runtime.logs import PROGRESS, Terminal, log_to
from kproba.runtime.package import PACKAGE


def test_error_of_the_package_is_its_message_alone(tmp_path):
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit) as stopped, log_to(log):
        KINDS["folder"].class_names(None, ["cat"])
    assert stopped.value.code == 1
    assert log.read_text().startswith("Error: Expected `classes` to start with")
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "raise_error",
    [
        lambda folder: KINDS["voc"].find_pairs(folder, 0.2),  # kproba/data/kinds
        lambda folder: parse_task("15-", 20),  # kproba/data
        find_description,  # kproba/bank
        lambda folder: lock_file("0"),  # kproba/runtime
    ],
)
def test_errors_of_all_folders_of_the_package_are_messages(
    tmp_path, monkeypatch, raise_error
):
    monkeypatch.setenv("KPROBA_LOCKS", "/")
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit), log_to(log):
        raise_error(tmp_path)
    assert log.read_text().startswith("Error: Expected ")
    assert "Traceback" not in log.read_text()


def test_the_package_is_where_its_init_file_is():
    assert Path(kproba.__file__) == PACKAGE / "__init__.py"
    for module in ("data/download.py", "runtime/logs.py", "bank/description.py"):
        assert (PACKAGE / module).is_file()


def test_other_errors_come_with_their_traceback(tmp_path):
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit), log_to(log):
        int("x")
    assert "Traceback" in log.read_text()
    assert (
        log.read_text().rstrip().endswith("invalid literal for int() with base 10: 'x'")
    )


def test_a_full_gpu_names_the_remedy(tmp_path):
    log = tmp_path / "a.log"
    # PyTorch raises it from C, so that the innermost known line is one of the package.
    line = "raise error('CUDA out of memory. Tried to allocate 9 GiB')"
    names = {"error": torch.OutOfMemoryError}
    with pytest.raises(SystemExit), log_to(log):
        exec(compile(line, losses.__file__, "exec"), names)
    first, last = log.read_text().splitlines()
    assert "raise compute.accumulation" in first
    assert last == "CUDA out of memory. Tried to allocate 9 GiB"


@pytest.mark.parametrize(
    ("line", "has_traceback"),
    [
        ("raise ValueError('Expected a, but got b.')", False),
        ("raise OSError('Expected a, but got b.')", False),
        ("raise RecursionError('too deep')", True),
        ("raise NotImplementedError('later')", True),
        ("raise KeyError('a')", True),
        ("raise TypeError('a')", True),
        ("raise AssertionError('a')", True),
        ("raise MemoryError('9 GiB')", False),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", False),
    ],
)
def test_which_errors_of_the_package_come_with_a_traceback(
    tmp_path, line, has_traceback
):
    with pytest.raises(SystemExit) as stopped, log_to(tmp_path / "a.log"):
        exec(compile(line, losses.__file__, "exec"))
    assert stopped.value.code == 1
    said = (tmp_path / "a.log").read_text()
    assert ("Traceback" in said) == has_traceback
    assert said.startswith("Error: Expected") != has_traceback


def test_ctrl_c_is_one_line_in_a_log(tmp_path):
    with pytest.raises(SystemExit) as stopped, log_to(tmp_path / "a.log"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert (tmp_path / "a.log").read_text() == "Interrupted.\n"


def test_names_that_are_no_text_are_escaped_in_a_log(tmp_path):
    with pytest.raises(SystemExit), log_to(tmp_path / "a.log"):
        find_description(tmp_path / "\udcff" / "model.safetensors")
    assert "\\udcff" in (tmp_path / "a.log").read_text()


def test_log_lines_go_to_the_file_and_on_request_to_the_terminal(tmp_path, capfd):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        for terminal in (False, True):
            with log_to(tmp_path / "a.log", terminal=terminal):
                logging.getLogger("kproba").info("half done")
            assert "half done" in (tmp_path / "a.log").read_text()
            assert ("half done" in capfd.readouterr().err) == terminal
    finally:
        root.handlers, root.level = handlers, level


@pytest.fixture
def reports(tmp_path):
    """A logger that reports to a file as to a terminal, at most every 15 seconds."""
    log, handler = logging.getLogger("reports"), Terminal(str(tmp_path / "terminal"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield log, handler, tmp_path / "terminal"
    log.removeHandler(handler)


def test_terminal_gets_progress_only_and_not_too_often(reports, monkeypatch):
    log, handler, terminal = reports
    log.info("a header")
    for second in range(1000):
        monkeypatch.setattr("time.monotonic", lambda s=second: handler.start + s)
        log.info("at %d", second, extra=PROGRESS)
    seconds = [int(line.split()[-1]) for line in terminal.read_text().splitlines()]
    assert seconds[:3] == [15, 30, 45]
    assert seconds[-1] - seconds[-2] >= 45  # a twentieth of the time so far


def test_nothing_more_is_written_to_a_closed_terminal(reports, capfd, monkeypatch):
    log, handler, _ = reports
    handler.start = handler.last = -1e9
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    reader, writer = os.pipe()
    os.close(reader)
    handler.stream = os.fdopen(writer, "w", buffering=1)
    log.info("half done", extra=PROGRESS)
    assert handler not in logging.getLogger().handlers
    assert capfd.readouterr().err == ""

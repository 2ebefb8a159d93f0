"""What scripts leave in their logs."""

import logging
import os

import pytest
import torch

from kproba.data.kinds import KINDS
from kproba.methods.losses import step as losses
from kproba.runtime.logs import PROGRESS, Terminal, log_to


def test_error_of_the_package_is_its_message_alone(tmp_path):
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit) as stopped, log_to(log):
        KINDS["folder"].class_names(None, ["cat"])
    assert stopped.value.code == 1
    assert log.read_text().startswith("Error: Expected `classes` to start with")
    assert "Traceback" not in log.read_text()


def test_other_errors_come_with_their_traceback(tmp_path):
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit), log_to(log):
        int("x")
    assert "Traceback" in log.read_text()
    assert (
        log.read_text().rstrip().endswith("invalid literal for int() with base 10: 'x'")
    )


def test_a_full_gpu_tells_the_mend(tmp_path):
    log = tmp_path / "a.log"
    # As PyTorch raises it: from C, so that the last line known is one of the package.
    line = "raise error('CUDA out of memory. Tried to allocate 9 GiB')"
    names = {"error": torch.OutOfMemoryError}
    with pytest.raises(SystemExit), log_to(log):
        exec(compile(line, losses.__file__, "exec"), names)
    first, last = log.read_text().splitlines()
    assert "raise compute.accumulation" in first
    assert last == "CUDA out of memory. Tried to allocate 9 GiB"


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
def told(tmp_path):
    """A logger that tells a file as if it were a terminal, at most every 15 seconds."""
    log, handler = logging.getLogger("told"), Terminal(str(tmp_path / "terminal"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield log, handler, tmp_path / "terminal"
    log.removeHandler(handler)


def test_terminal_is_told_of_progress_alone_and_not_too_often(told, monkeypatch):
    log, handler, terminal = told
    log.info("a header")
    for second in range(1000):
        monkeypatch.setattr("time.monotonic", lambda s=second: handler.start + s)
        log.info("at %d", second, extra=PROGRESS)
    told_at = [int(line.split()[-1]) for line in terminal.read_text().splitlines()]
    assert told_at[:3] == [15, 30, 45]
    assert told_at[-1] - told_at[-2] >= 45  # a twentieth of the time so far


def test_closed_terminal_is_told_nothing_more(told, capfd, monkeypatch):
    log, handler, _ = told
    handler.start = handler.last = -1e9
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    reader, writer = os.pipe()
    os.close(reader)
    handler.stream = os.fdopen(writer, "w", buffering=1)
    log.info("half done", extra=PROGRESS)
    assert handler not in logging.getLogger().handlers
    assert capfd.readouterr().err == ""

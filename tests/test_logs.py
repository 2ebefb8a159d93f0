"""What scripts leave in their logs."""

import logging

import pytest

from kproba.datasets import class_names
from kproba.logs import log_to


def test_error_of_the_package_is_its_message_alone(tmp_path):
    log = tmp_path / "a.log"
    with pytest.raises(SystemExit) as stopped, log_to(log):
        class_names("folder", None, ["cat"])
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

"""The command `kproba`: arguments, interruptions, closed pipes, and what it imports."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_predictions import Command, noise
from test_inference import step  # noqa: F401  # a fixture
from test_segmenter import run, trained  # noqa: F401

import kproba
from kproba import cli
from kproba.predict import info, predict
from kproba.predict.predict import choose_device
from kproba.results import measures, tensorboard
from kproba.runtime.logs import describe_error


@pytest.fixture
def predicting(monkeypatch, capsys, caplog) -> Command:
    return Command(monkeypatch, capsys, caplog)


# --- arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", 0], "--batch-size of at least 1, but got 0"),
        (["--batch-size", -1], "--batch-size of at least 1, but got -1"),
        (["--tile", 1], "tile of at least 64 pixels"),
        (["--tile", -1024], "tile of at least 64 pixels"),
        (["--long-side", 5], "long side of at least 32"),
        (["--long-side", -1], "long side of at least 32"),
    ],
    ids=str,
)
def test_numbers_of_predict_are_checked_first(predicting, tmp_path, words, message):
    noise(60, 40).save(tmp_path / "a.png")
    out = tmp_path / "out"
    status, said = predicting(tmp_path / "a.png", "--out", out, *words)
    assert status == 1
    assert message in said
    assert predicting.model is None
    assert not out.exists()


def test_the_size_that_the_model_was_trained_with_may_be_overruled(
    predicting, tmp_path, monkeypatch
):
    noise(90, 60).save(tmp_path / "a.png")

    def load(*words):
        segmenter = predicting.load(*words)
        segmenter.long_side = 45
        return segmenter

    monkeypatch.setattr(predict, "_load", load)
    for words, height in (
        ([], 30),
        (["--long-side", 0], 60),
        (["--long-side", 60], 40),
    ):
        status, _ = predicting(tmp_path / "a.png", "--out", tmp_path / "out", *words)
        assert status == 0
        assert predicting.model.predictor.shapes[0][2] == height


@pytest.mark.parametrize(
    "device", ["foo", "", "cuda:", "cuda:x", "cuda:-1", "gpu", "mps", "cpu:0", "cuda:²"]
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_devices_that_are_none_are_refused(monkeypatch, device, gpus):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(ValueError, match=r"Expected auto, cpu, cuda, or cuda: and"):
        choose_device(device)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("cpu", 1, "cpu"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:1", 1, "Expected a GPU number from 0 to 0"),
        ("cuda:99", 8, "Expected a GPU number from 0 to 7"),
        ("cuda", 0, "Expected a GPU for --device cuda, but found none"),
        ("cuda:99", 0, "Expected a GPU for --device cuda:99, but found none"),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, device, gpus, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    if expected.startswith("Expected"):
        with pytest.raises(ValueError, match=expected):
            choose_device(device)
    else:
        assert choose_device(device) == expected


# --- interruptions and closed pipes --------------------------------------------------


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((predict, "segment_files"), ["predict", "step", "a.jpg"]),
        ((info, "describe"), ["info", "step"]),
        ((tensorboard, "show_curves"), ["tensorboard"]),
        ((cli, "build_parser"), ["--help"]),
    ],
    ids=["predict", "info", "tensorboard", "arguments"],
)
def test_ctrl_c_is_one_line(monkeypatch, capsys, place, words):
    def press(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, press)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "Interrupted.\n")


# A signal that comes while modules are imported may be lost: the program says when it
# begins to read.
READY = """
import sys
from kproba import cli
from kproba.predict import inputs

def announce(stream, lines=inputs._lines):
    print("ready", flush=True)
    return lines(stream)

inputs._lines = announce
cli.main(sys.argv[1:])
"""


def test_ctrl_c_while_a_list_is_read(trained, tmp_path):  # noqa: F811
    words = ["predict", str(trained), "-", "--out", str(tmp_path / "found")]
    with subprocess.Popen(
        [sys.executable, "-c", READY, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout.readline() == "ready\n"
        for _ in range(12):  # a signal may come before the list is read
            command.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(timeout=5)
                break
        assert command.poll() == 130
        assert command.stderr.read() == "Interrupted.\n"
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize("words", [["info"], ["--help"], ["predict", "--help"]])
def test_output_that_nobody_reads_is_no_error(trained, words):  # noqa: F811
    words = [*words, str(trained)] if words == ["info"] else words
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kproba.cli", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error(trained):  # noqa: F811
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kproba.cli", "info", str(trained)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "Error: Expected this job to fit into the memory of this"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "Error: Expected this job to fit into the memory of this",
        ),
        (RuntimeError("std::bad_alloc"), "Lower compute.batch_size"),
        (KeyError("x"), "KeyError: 'x'"),
        (RecursionError("maximum"), "RecursionError: maximum"),
    ],
    ids=str,
)
def test_a_full_memory_names_the_remedy(error, text):
    try:
        raise error
    except Exception as caught:
        described = describe_error(caught)
    assert text in described
    is_full = not isinstance(error, KeyError | RecursionError)
    assert ("--batch-size, --tile or --long-side" in described) == is_full
    assert ("Traceback" in described) == (not is_full)


# --- info ----------------------------------------------------------------------------


def test_info_of_a_run_lists_its_steps(trained, capsys):  # noqa: F811
    run_folder = trained / "kproba/seed0"
    for name in ("step10", "step2", "step1"):
        folder = run_folder / name
        folder.mkdir(parents=True)
        for pattern in ("*.safetensors", "*.json"):
            for path in trained.glob(pattern):
                shutil.copy(path, folder)
    (run_folder / "step2/evaluation.json").unlink()
    (run_folder / "step10/predictor.json").write_text("[]")
    code, printed = run(capsys, "info", run_folder)
    assert code == 0
    first, second, third = printed.splitlines()
    assert first.startswith(
        "step1: 2 classes and background; network and bank (klda); "
    )
    assert "mIoU: " in first and first.endswith(" percent")
    assert second.endswith("not evaluated")
    assert third.startswith("step10: cannot be read: Expected")
    for above in (trained / "kproba", trained.parent):
        _, printed = run(capsys, "info", above)
        assert f"{(run_folder / 'step1').relative_to(above)}: 2 classes" in printed


@pytest.mark.parametrize("kind", ["empty", "file", "missing", "x" * 300])
def test_info_of_something_else_is_an_error(tmp_path, capsys, kind):
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    if kind == "file":
        path.write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(path)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Expected") and said.count("\n") == 1


def test_info_has_the_means_of_the_tables():
    means = {measure.name: measure.title for measure in measures.step_means()}
    assert means == info.MEANS


def test_names_that_the_terminal_cannot_show_are_escaped(
    trained,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(info, "describe", lambda path: ["Möwe", "\udcff"])
    with (tmp_path / "said").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as ended:
            cli.main(["info", str(trained)])
    assert ended.value.code == 0
    assert (tmp_path / "said").read_text() == "M\\xf6we\n\\udcff\n"


# --- what is imported ----------------------------------------------------------------

LIGHT = """
import sys
from kproba import cli
try:
    cli.main(sys.argv[1:])
finally:
    slow = {"torch", "torchvision", "pandas", "sklearn", "timm", "matplotlib", "PIL"}
    print("imported", sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["predict", "--help"], 0),
        ([], 2),
        (["no-such-command"], 2),
        (["predict", "step"], 2),
        (["info", "step", "another"], 2),
        (["info", "no/such/step"], 1),
        (["info", "TRAINED"], 0),
        (["tensorboard", "no/such/folder"], 1),
        (["tensorboard", "--port", "99999"], 1),
    ],
    ids=str,
)
def test_short_answers_import_nothing_slow(trained, words, status):  # noqa: F811
    words = [str(trained) if word == "TRAINED" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("imported []\n")
    if words == ["--version"]:
        assert done.stdout.startswith(kproba.__version__)


def test_mistakes_in_predict_do_not_import_torch(tmp_path):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    for words in (
        [str(tmp_path / "none.jpg")],
        [str(tmp_path / "a.png"), "--out", str(tmp_path / "file")],
        [str(tmp_path / "a.png"), "--tile", "1"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, "predict", "step", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 1
        assert done.stdout == "imported ['PIL']\n"

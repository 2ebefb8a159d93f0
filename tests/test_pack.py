"""A step in one archive: it predicts the same, describes itself, and is checked."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tested_steps import FIRST, STEP, forget_digests, write_tested_step

import kproba
from kproba.cli import main as command
from kproba.network.architecture import Architecture
from kproba.predict.pack import opened, pack_step, read_packed, unpack_step
from kproba.predict.packed import MEMBERS, STEP_FILE
from kproba.runtime.records import ArtifactError

ALL = sorted(MEMBERS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results/ with a tested step by network and bank."""
    made = tmp_path_factory.mktemp("results")
    write_tested_step(made)
    return made


@pytest.fixture(scope="module")
def archive(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step, packed."""
    return pack_step(root / STEP, tmp_path_factory.mktemp("packed") / "step.zip")


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    """An archive that a test may damage."""
    return Path(shutil.copy(archive, tmp_path / "copy.zip"))


def _probabilities(step: Path) -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return kproba.load(step).predict(picture).probabilities


def test_an_archive_predicts_as_its_step_without_the_results(
    root: Path, archive: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(archive, tmp_path))
    expected = _probabilities(root / STEP)
    np.testing.assert_array_equal(_probabilities(alone), expected)
    with zipfile.ZipFile(alone) as unzipped:  # by hand
        unzipped.extractall(tmp_path / "by hand")
    np.testing.assert_array_equal(_probabilities(tmp_path / "by hand"), expected)


def test_equal_steps_give_equal_archives_wherever_they_are(
    root: Path, archive: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "results", tmp_path / "moved/results")
    again = pack_step(tmp_path / "moved" / STEP, tmp_path / "again.zip")
    assert again.read_bytes() == archive.read_bytes()
    unpack_step(archive, tmp_path / "step")
    os.utime(tmp_path / "step/model.json", (0, 0))
    of_folder = pack_step(tmp_path / "step", tmp_path / "folder.zip")
    assert of_folder.read_bytes() == archive.read_bytes()
    unpack_step(root / STEP, tmp_path / "copied")
    for path in sorted((tmp_path / "step").rglob("*")):
        if path.is_file():
            other = tmp_path / "copied" / path.relative_to(tmp_path / "step")
            assert other.read_bytes() == path.read_bytes()


def test_a_step_says_of_itself_the_same_packed_or_not(
    root: Path, archive: Path
) -> None:
    packed, folder = read_packed(archive), read_packed(root / STEP)
    assert packed.digest == folder.digest
    assert sorted(packed.members) == ALL
    assert packed.members == folder.members
    for step in (packed, folder):
        assert (step.dataset, step.task, step.setting) == ("pets", "1-1", "overlap")
        assert (step.method, step.seed, step.step) == ("kproba", 0, 1)
        assert step.groups == ((1,), (2,))
        assert step.labels == (0, 1, 2)
        assert step.names == ("background", "cat", "dog")
        assert step.values == (0, 1, 2)
        assert step.head == "branches"
        assert isinstance(step.architecture, Architecture)
        assert step.bank is not None
        assert (step.bank.map, step.bank.dimension, step.bank.maps) == ("rff", 64, 2)
        assert step.features == "step0"
        assert step.long_side is None


def test_names_and_results_do_not_change_the_digest(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "results", tmp_path / "results")
    step = tmp_path / STEP
    before = read_packed(step)
    for name in ("predictor.json", "evaluation.json"):
        path = step / name
        path.write_text(path.read_text().replace("cat", "kitten"))
    after = read_packed(step)
    assert after.names == ("background", "kitten", "dog")
    assert after.digest == before.digest
    assert after.members != before.members


def test_a_bank_is_packed_also_where_the_network_predicts_alone(tmp_path: Path) -> None:
    step = write_tested_step(tmp_path, fused=False)
    packed = read_packed(pack_step(step, tmp_path / "step.zip"))
    assert packed.bank is not None
    assert packed.features == "step0"
    assert sorted(packed.members) == ALL
    with opened(tmp_path / "step.zip") as folder:
        described = json.loads((folder / "predictor.json").read_text())
        assert described["bank"] is described["feature_network"] is None
        assert described["decision"] is None
    (step / "prototypes.safetensors").unlink()
    packed = read_packed(pack_step(step, tmp_path / "step.zip"))
    assert packed.bank is packed.features is None
    # The description of step 0 is kept all the same.
    wanted = set(ALL) - {"prototypes.safetensors", "prototypes.json"}
    assert set(packed.members) == wanted - {"step0/model.safetensors"}


def test_a_step_0_is_packed_by_itself(tmp_path: Path) -> None:
    step = write_tested_step(tmp_path)
    first = tmp_path / FIRST
    described = json.loads((step / "predictor.json").read_text())
    described |= {"bank": None, "feature_network": None, "decision": None}
    described |= {"classes": described["classes"][:2], "channels": [0, 1]}
    described["about"] |= {"task": "1", "method": "base", "step": 0}
    del described["digests"]
    (first / "predictor.json").write_text(json.dumps(described))
    packed = read_packed(pack_step(first, tmp_path / "first.zip"))
    assert packed.groups == ((1,),)
    assert sorted(packed.members) == [
        *("model.json", "model.safetensors", "predictor.json")
    ]


def test_an_older_step_is_packed_with_digests(tmp_path: Path) -> None:
    step = write_tested_step(tmp_path)
    forget_digests(step)
    packed = pack_step(step, tmp_path / "step.zip")
    with opened(packed) as folder:
        described = json.loads((folder / "predictor.json").read_text())
        assert len(described["digests"]) == 6
        assert kproba.load(folder).classes[1].name == "cat"
    assert read_packed(packed).digest == read_packed(step).digest


def test_the_network_of_the_features_is_found_without_a_link_to_it(
    tmp_path: Path,
) -> None:
    step = write_tested_step(tmp_path, fused=False)
    shutil.rmtree(step / "tensorboard")
    assert read_packed(step).features == "step0"
    shutil.rmtree(tmp_path / FIRST)
    with pytest.raises(FileNotFoundError, match="Copy the whole folder results/"):
        pack_step(step, tmp_path / "step.zip")


WITHOUT_TORCH = """
import sys
from kproba.predict.packed import read_packed
assert read_packed(sys.argv[1]).labels == (0, 1, 2)
print(sorted({"torch", "pandas", "requests"} & set(sys.modules)))
"""


@pytest.mark.parametrize("packed", [True, False])
def test_the_plan_reads_a_step_without_torch(
    root: Path, archive: Path, packed: bool
) -> None:
    path = archive if packed else root / STEP
    words = [sys.executable, "-c", WITHOUT_TORCH, str(path)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


# --- the command ---------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        command([str(word) for word in words])
    return int(ended.value.code or 0), capsys.readouterr().err


def test_the_command_writes_and_replaces_its_own_archives_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "pack", root / STEP)[0] == 0
    written = tmp_path / "pets-1-1-overlap-kproba-seed0-step1.zip"
    before = written.read_bytes()
    assert run(capsys, "pack", root / STEP, "--out", written)[0] == 0
    assert written.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


OTHERS: dict[str, Callable[[Path], object]] = {
    "a photograph": lambda path: path.write_bytes(b"\xff\xd8\xff"),
    "an empty file": Path.touch,
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "another archive": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "a step.json of others": lambda path: zipfile.ZipFile(path, "w").writestr(
        STEP_FILE, "[1]"
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_nothing_else_is_replaced(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    path = tmp_path / "out.zip"
    OTHERS[other](path)
    before = path.lstat()
    status, message = run(capsys, "pack", root / STEP, "--out", path)
    assert status == 1
    assert message.startswith("Error: Expected a new name or an archive")
    after = path.lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        *(before.st_ino, before.st_size, before.st_mtime_ns),
    )


def test_an_archive_below_a_file_cannot_be_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file/step.zip"
    status, message = run(capsys, "pack", root / STEP, "--out", out)
    assert status == 1
    assert message.startswith(f"Error: Expected to write {out}, but")


# --- archives that are damaged or foreign -------------------------------------------


def _rezipped(
    change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED
) -> Callable[[Path], None]:
    """A damage that changes members, by name, and writes them again."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as source:
            members = {name: source.read(name) for name in source.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", compression) as target:
            for name, content in members.items():
                target.writestr(name, content)

    return damage


def _with_record(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A damage that changes the content of step.json."""

    def rewrite(members: dict[str, bytes]) -> None:
        record = json.loads(members[STEP_FILE])
        change(record)
        members[STEP_FILE] = json.dumps(record).encode()

    return _rezipped(rewrite)


def _twice(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("model.json", "{}")


def _flip(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[int(share * len(raw))] ^= 1
        path.write_bytes(raw)

    return damage


def _cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])

    return damage


def _bomb(members: dict[str, bytes]) -> None:
    members["model.safetensors"] = bytes(2**24)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": _cut(0),
    "half": _cut(0.5),
    "without its end": _cut(0.9999),
    "a flipped byte of a model": _flip(0.2),
    "a flipped byte of step 0": _flip(0.9),
    "text": lambda path: path.write_text("no archive"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another archive": _rezipped(lambda members: members.clear()),
    "compressed": _rezipped(lambda members: None, zipfile.ZIP_DEFLATED),
    "a bomb": _rezipped(_bomb, zipfile.ZIP_DEFLATED),
    "without step.json": _rezipped(lambda members: members.pop(STEP_FILE)),
    "without a model": _rezipped(lambda members: members.pop("model.safetensors")),
    "without a description": _rezipped(lambda members: members.pop("model.json")),
    "with a script": _rezipped(lambda members: members.update({"a.py": b"1"})),
    "out of the folder": _rezipped(lambda members: members.update({"../a": b"1"})),
    "absolute": _rezipped(lambda members: members.update({"/tmp/a": b"1"})),
    "a member twice": _twice,
    "another model": _rezipped(
        lambda members: members.update(
            {"model.safetensors": members["step0/model.safetensors"]}
        )
    ),
    "another description": _rezipped(
        lambda members: members.update(
            {"model.json": members["model.json"].replace(b"label", b"level")}
        )
    ),
    "step.json is a list": _rezipped(
        lambda members: members.update({STEP_FILE: b"[]"})
    ),
    "step.json is empty": _rezipped(lambda members: members.update({STEP_FILE: b""})),
    "step.json is nested": _rezipped(
        lambda members: members.update({STEP_FILE: b"[" * 50_000})
    ),
    "step.json is binary": _rezipped(
        lambda members: members.update({STEP_FILE: b"\xff\xfe"})
    ),
    "a newer version": _with_record(lambda record: record.update(version=2)),
    "another format": _with_record(lambda record: record.update(format="zip")),
    "no members": _with_record(lambda record: record.update(members={})),
    "a member outside": _with_record(
        lambda record: record["members"].update(
            {"../a": {"sha256": "0" * 64, "bytes": 1}}
        )
    ),
    "a wrong size": _with_record(
        lambda record: record["members"]["model.json"].update(bytes=1)
    ),
    "a wrong digest": _with_record(
        lambda record: record["members"]["model.json"].update(sha256="0" * 64)
    ),
    "a label twice": _with_record(lambda record: record.update(groups=[[1], [1]])),
    "fewer names": _with_record(lambda record: record["names"].pop()),
    "huge channels": _with_record(
        lambda record: record["architecture"].update(aspp_channels=10**9)
    ),
    "seed is a text": _with_record(lambda record: record["run"].update(seed="0")),
    "a newer key": _with_record(lambda record: record.update(mood="good")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_named_and_leaves_nothing(
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    DAMAGES[damage](copy)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    status, message = run(capsys, "info", copy)
    assert status == 1
    assert message.startswith("Error: Expected"), message
    assert len(message.splitlines()) == 1, message
    assert copy.name in message
    with pytest.raises((ArtifactError, OSError), match="Expected"):
        kproba.load(copy)
    with pytest.raises((ArtifactError, OSError), match="Expected"):
        unpack_step(copy, tmp_path / "out")
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.zip", "temporary"]


def test_a_missing_archive_is_named(tmp_path: Path, capsys) -> None:
    status, message = run(capsys, "info", tmp_path / "no.zip")
    assert status == 1
    assert message.startswith("Error: Expected")
    assert "no.zip" in message


def test_more_bytes_than_there_is_room_for_are_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"room for the .* bytes of .*copy\.zip"):
        unpack_step(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()

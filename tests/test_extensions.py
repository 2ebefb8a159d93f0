"""Files of extensions: what they may add, what is refused, and what an edit changes."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from plan_configs import experiment, make_plan
from small_networks import ARCHITECTURE, random_images

import kproba
from kproba import extend
from kproba.extensions import (
    ExtensionError,
    find_origins,
    load_extensions,
    load_recorded,
)
from kproba.methods.losses.step import step_losses
from kproba.network import Architecture, SegmentationNetwork
from kproba.network.files import save_model
from kproba.plan.errors import ConfigError
from kproba.plan.plan import Plan

TABLES: tuple[dict[str, Any], ...] = (
    *(extend.BACKBONES, extend.HEADS, extend.KINDS, extend.MEASURES),
    *(extend.METHODS, extend.RULES, extend.TERMS),
)
# One line, because the messages count lines.
START = "from kproba.extend import *; from kproba.extend import BACKBONES, KINDS\n"
TERM = """
add_term(Term("mine", "Mine.", lambda case: case.logits.sum(), frozenset({"softmax"})))
add_method("own", Method(head="softmax", cross_entropy="ce", losses={"mine": 1.0}))
"""
HEAD = """
SOFTMAX = "kproba.network.heads:SoftmaxHead"
add_head(HeadEntry("other", "Other.", "base_other", "ce", {"softmax"}, SOFTMAX))
add_method("own", Method(head="other", cross_entropy="ce"))
"""
BACKBONE = """
from dataclasses import replace
add_backbone(replace(BACKBONES["resnet50"], name="mine"))
"""
RULE = """
add_label_rule(LabelRule("mine", "Mine.", "kproba.methods.labels:by_argmax"))
add_method(
    "own", Method(head="softmax", cross_entropy="ce", pseudo_labels={"rule": "mine"})
)
"""
KIND = """
from dataclasses import replace
add_dataset_kind(replace(KINDS["folder"], name="mine"))
"""
MEASURE = """
add_measure(StepMeasure(
    name="mine", title="mine", explanation="mine", compute=lambda scores: 1.0
))
"""


@pytest.fixture(autouse=True, scope="module")
def _schema_is_parsed_once() -> Iterator[None]:
    """Parsing it takes most of the time of a check."""
    parse = cache(yaml.safe_load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
        yield


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writer of a file of extensions in the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(content: str, name: str = "mine.py") -> str:
        Path(name).write_text(START + content)
        return name

    return write_file


# --- loading ------------------------------------------------------------------------


def test_file_is_loaded_once_and_an_edited_one_replaces_its_entries(
    write: Callable[..., str], tmp_path: Path
) -> None:
    name = write(MEASURE)
    load_extensions([name, name, f"./{name}", str(tmp_path / name)])
    first = extend.MEASURES["mine"]
    load_extensions([name])
    assert extend.MEASURES["mine"] is first
    write(MEASURE.replace('explanation="mine"', 'explanation="new!"'))
    load_extensions([name])
    assert extend.MEASURES["mine"].explanation == "new!"
    write(TERM)
    load_extensions([name])
    assert "mine" not in extend.MEASURES
    assert {"mine"} <= extend.TERMS.keys()
    assert find_origins([("measure", "mine"), ("loss term", "ce")]) == []


def test_origin_has_path_and_hash(write: Callable[..., str]) -> None:
    load_extensions([write(TERM)])
    entries = [("loss term", "mine"), ("loss term", "ce"), ("method", "own")]
    [origin] = find_origins(entries)
    assert origin["path"] == "mine.py"
    assert len(origin["sha256"]) == 64


def test_file_may_have_dataclasses_and_import_torch(write: Callable[..., str]) -> None:
    text = "from __future__ import annotations\nimport torch\n" + START
    Path(write("")).write_text(
        text + "from dataclasses import dataclass\n@dataclass\nclass A:\n  a: int\n"
    )
    load_extensions(["mine.py"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 / 0", "mine.py, line 2 raised ZeroDivisionError: division by zero"),
        ("def f(:", "mine.py raised SyntaxError"),
        ("raise SystemExit(3)", "mine.py, line 2 raised SystemExit: 3"),
        ("\n\nimport nowhere", "mine.py, line 4 raised ModuleNotFoundError"),
        (TERM.replace('"mine"', '"gkd"'), "line 3: .*'gkd' exists already .built in"),
        (TERM + TERM, "'mine' exists already .from mine.py"),
        ("add_term('focal')", "line 2: Expected a Term .* but got 'focal'"),
        ("add_term(Term('a', 'b', 3))", "'a': expected a function or its reference"),
        ("add_term(Term('a b', 'b', print))", "Expected a name of letters"),
        ("add_term(Term('a', 'b', print, 'softmax'))", "expected a frozenset"),
        ("add_term(Term('a', 'b', print, {3}))", "expected strings in `needs`"),
        ("add_term(Term('loss', 'b', print))", "expected a column name other than"),
        (HEAD.replace("SoftmaxHead", "S").replace(":", "/"), "`implementation`"),
        (HEAD.replace("base_other", "base"), "expected a new name of"),
        (HEAD.replace('"ce", {', '"mine", {'), "`step_0_loss` of .*'mine'"),
        (HEAD.replace("SOFTMAX)", "SOFTMAX, {'kdd': 1})"), "`step_0_terms` of .*'kdd'"),
        (HEAD.replace("SOFTMAX)", "SOFTMAX, {'kd': 1})"), "kd needs teacher"),
        (HEAD.replace('{"softmax"}', '{"own"}'), "ce needs softmax"),
        (BACKBONE.replace("name=", "build=3, name="), "as `build`, but got 3"),
        (BACKBONE.replace("name=", "output_strides=(4,), name="), "but got .4,"),
        (BACKBONE.replace("name=", "mean=0.5, name="), "three numbers for `mean`"),
        (KIND.replace("name=", "settings={}, name="), "path is missing"),
        (KIND.replace("name=", "find_pairs='a:b', name="), "`find_pairs`"),
        (KIND.replace("name=", "drawn=True, name="), "drawn=False"),
        (RULE.replace('argmax"', 'argmax", ("speed",)'), "`reads` of .*'speed'"),
        (RULE.replace('argmax"', 'argmax", scores=True'), "scores=False"),
        (RULE.replace('argmax"', 'argmax", bank="rff"'), "bank 'rff' .klda, kappa"),
        (MEASURE.replace("lambda scores: 1.0", "1.0"), "`compute`, but got 1.0"),
        (MEASURE.replace('"mine"', '"images"'), "but got 'images'"),
        (MEASURE.replace('title="mine"', 'title="old"'), "'mine' and 'old'"),
        ("add_method('a', 3)", "Expected a Method"),
        ("add_method('base', Method())", "is reserved"),
        ("add_method('a', Method(cross_entropy='fce'))", "`cross_entropy` of .*'fce'"),
        ("add_method('a', Method(losses={'new': 1}))", "`losses` of .*'new'"),
        ("add_method('a', Method(losses={'kd': 1}))", "kd needs softmax"),
        (
            "add_method('a', Method(recipes=(Recipe(losses={'kd': 1}),)))",
            "kd needs softmax",
        ),
        (
            "add_method('a', Method(recipes=(Recipe(losses={'no': 1}),)))",
            "`losses` of .*'no'",
        ),
        ("add_method('a', Method(recipes=(3,)))", "expected Recipe"),
        ("add_method('a', Method(recipes=(Recipe(kinds='voc'),)))", "tuples"),
        ("add_method('a', Method(head='no'))", "`head` of .*'no'"),
        ("add_method('a', Method(pseudo_labels={'rule': 'no'}))", "rule` of .*'no'"),
        ("add_method('a', Method(prediction='no'))", "`prediction` of .*'no'"),
        ("add_method('a', Method(trains='no'))", "`trains` of .*nothing.*'no'"),
    ],
)
def test_wrong_file_is_refused_in_one_message_and_adds_nothing(
    write: Callable[..., str], content: str, expected: str
) -> None:
    before = [dict(table) for table in TABLES]
    name = write(MEASURE.replace("mine", "good") + "\n" if "def" in content else "")
    Path(name).write_text(START + content)
    with pytest.raises(ExtensionError, match=expected) as raised:
        load_extensions([name])
    assert "mine.py" in str(raised.value)
    assert [dict(table) for table in TABLES] == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere.py", "/nowhere.py, but it cannot be read: No such file"),
        ("folder.py", "folder.py, but it cannot be read: Is a directory"),
        ("terms.txt", "with a name ending in .py, but got terms.txt"),
    ],
)
def test_path_that_is_no_python_file_is_refused(
    write: Callable[..., str], path: str, expected: str
) -> None:
    write("")
    Path("folder.py").mkdir()
    Path("terms.txt").write_text("")
    with pytest.raises(ConfigError, match=f"^extensions: .*{expected}"):
        make_plan(extensions=[path])


def test_a_head_may_provide_what_its_own_loss_needs(write: Callable[..., str]) -> None:
    loss = """
needs = frozenset({"open"})
add_term(Term("open_ce", "Open.", "kproba.methods.losses.cross_entropy:ce_term",
              needs, classifies=True))
"""
    content = loss + HEAD.replace('"ce"', '"open_ce"').replace('{"softmax"}', "needs")
    plan = make_plan(extensions=[write(content)], **experiment(methods=["own"]))
    assert plan.method("own").method.needs == {"open"}


def test_importing_the_functions_needs_no_torch() -> None:
    code = "import sys, kproba.extend; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- recorded files -----------------------------------------------------------------


def test_job_refuses_a_file_that_was_edited_after_the_plan(
    write: Callable[..., str], clean: Callable[[], None]
) -> None:
    load_extensions([write(TERM)])
    recorded = find_origins([("loss term", "mine")])
    load_recorded(recorded)
    clean()
    load_recorded(recorded)
    clean()
    write(TERM + "\n")
    with pytest.raises(ExtensionError, match=r"mine\.py to be unchanged since"):
        load_recorded(recorded)


def save_with_own_head(folder: Path) -> tuple[Path, torch.Tensor]:
    """A model with a head of mine.py, and its logits."""
    architecture = Architecture(**{**vars(ARCHITECTURE), "head": "other"})
    network = SegmentationNetwork(architecture, [3, 2], seed=1).eval()
    path = folder / "results" / "digits" / "step1" / "model.safetensors"
    save_model(network, path, about={})
    with torch.inference_mode():
        return path, network.predict_logits(random_images())


def test_model_finds_the_file_of_its_head_above_its_folder(
    write: Callable[..., str],
    clean: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load_extensions([write(HEAD)])
    path, expected = save_with_own_head(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write("raise ValueError")  # of that name, but not the file of the model
    clean()
    network = kproba.load_model(path)
    with torch.inference_mode():
        torch.testing.assert_close(network.predict_logits(random_images()), expected)

    clean()
    (tmp_path / "mine.py").write_text(START + HEAD + "\n")
    Path("mine.py").unlink()
    kproba.load_model(path)
    assert "mine.py was edited after" in caplog.text

    clean()
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ExtensionError, match=r"^Expected mine\.py, the file of .*Put"):
        kproba.load_model(path)


def test_model_needs_no_file_of_what_it_was_trained_with(
    write: Callable[..., str], clean: Callable[[], None], tmp_path: Path
) -> None:
    load_extensions([write(TERM)])
    network = SegmentationNetwork(ARCHITECTURE, [3], seed=1)
    save_model(network, tmp_path / "model.safetensors", about={})
    clean()
    Path("mine.py").unlink()
    kproba.load_model(tmp_path / "model.safetensors")


def test_term_takes_part_in_the_loss(write: Callable[..., str]) -> None:
    class Logits:
        logits = torch.ones(2, 3)

    load_extensions([write(TERM)])
    losses = step_losses(Logits(), {"mine": 0.5})  # type: ignore[arg-type]
    assert {name: float(value) for name, value in losses.items()} == {"mine": 3.0}


# --- what an edit changes -----------------------------------------------------------


def jobs_of(plan: Plan) -> dict[tuple[str, int, str], str]:
    """The digests of all jobs, by method, step and kind."""
    return {
        (run.method, step, type(job).__name__): job.digest
        for run in plan.runs
        for step in plan.steps(run)
        for job in plan.chain.jobs(run, step)
    }


TRAINED = {"Training", "Test", "Bank"}


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (
            TERM,
            {("own", step, kind) for step in (1, 2) for kind in (*TRAINED, "Labels")}
            - {("own", 1, "Labels"), ("own", 1, "Bank")},  # made by step 0's network
        ),
        (
            HEAD,
            {("own", step, kind) for step in (0, 1, 2) for kind in (*TRAINED, "Labels")}
            # The features of the bank are those before step 0, which have no head.
            - {("own", 0, "Labels"), ("own", 0, "Bank")},
        ),
        (
            RULE,
            {("own", step, kind) for step in (1, 2) for kind in (*TRAINED, "Labels")},
        ),
        (MEASURE + TERM.splitlines()[1], set()),  # no job has an entry of the file
    ],
    ids=["term", "head", "rule", "nothing"],
)
def test_edit_changes_exactly_the_jobs_that_use_the_file(
    write: Callable[..., str], content: str, changed: set[tuple[str, int, str]]
) -> None:
    methods = ["finetune", "lwf", *(["own"] if "own" in content else [])]

    def plan() -> dict[tuple[str, int, str], str]:
        name = "mine.py"
        changes = experiment(task="6-2", methods=methods)
        return jobs_of(make_plan(**changes, extensions=[name]))

    write(content)
    before = plan()
    assert plan() == before
    write(content + "\n")
    after = plan()
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == changed


def test_edit_of_a_backbone_changes_every_training(write: Callable[..., str]) -> None:
    def plan() -> Plan:
        changes = {"model": {"backbone": "mine", "weights": "none"}}
        return make_plan(**changes, extensions=["mine.py"])

    write(BACKBONE)
    before = jobs_of(plan())
    write(BACKBONE + "\n")
    after = jobs_of(plan())
    same = {kind for (*_, kind), digest in before.items() if digest in after.values()}
    assert same == {"Split"}


def test_edit_of_a_kind_changes_the_index_of_its_datasets(
    write: Callable[..., str],
) -> None:
    def settings() -> list[dict[str, Any]]:
        datasets = {
            "tiny": {"kind": "digits"},
            "own": {"kind": "mine", "path": "x", "classes": ["background", "cat"]},
        }
        plan = make_plan(datasets=datasets, extensions=["mine.py"])
        return [plan.datasets.index_settings(name) for name in ("tiny", "own")]

    write(KIND)
    tiny, own = settings()
    assert "extensions" not in tiny
    assert own["extensions"][0]["path"] == "mine.py"
    write(KIND + "\n")
    assert settings()[0] == tiny
    assert settings()[1] != own


def test_edit_of_a_measure_changes_what_the_tables_record(
    write: Callable[..., str],
) -> None:
    load_extensions([write(MEASURE)])
    before = find_origins(("measure", name) for name in extend.MEASURES)
    load_extensions([write(MEASURE + "\n")])
    after = find_origins(("measure", name) for name in extend.MEASURES)
    assert [entry["path"] for entry in before] == ["mine.py"]
    assert before != after


def test_configuration_may_name_what_a_file_adds(
    write: Callable[..., str], clean: Callable[[], None]
) -> None:
    write(TERM)
    methods = {"mixed": {"based_on": "own", "losses": {"mine": 2}}}
    plan = make_plan(methods=methods, extensions=["mine.py"])
    assert plan.method("mixed").method.losses == {"mine": 2.0}
    clean()
    with pytest.raises(ConfigError, match="losses: unknown key 'mine'"):
        make_plan(methods={"mixed": {"based_on": "lwf", "losses": {"mine": 2}}})


def test_check_needs_a_list_of_texts(write: Callable[..., str]) -> None:
    write("")
    with pytest.raises(ConfigError, match="extensions: expected array"):
        make_plan(extensions="mine.py")

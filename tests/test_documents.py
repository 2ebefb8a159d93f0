"""Links, anchors, commands, code and configurations in the documents are right."""

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from plan_configs import SCHEMA, SCHEMA_PATH
from snakemake.cli import get_argument_parser
from snakemake_calls import ROOT

from kproba.cli import build_parser
from kproba.plan.schema import check, merged

GENERATED = {".venv", ".git", ".snakemake", ".pytest_cache", "build", "dist", "results"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not GENERATED.intersection(path.relative_to(ROOT).parts)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
# tests/test_extending.py runs its code, which is partly for a Snakefile.
CHECKED = [name for name in NAMES if name != "docs/extending.md"]
# A configuration that is complete; those of the documents are laid over it.
SMALLEST = {
    "datasets": {"digits": {"kind": "digits"}},
    "experiments": [{"dataset": "digits", "task": "6-2"}],
}
# Files of the repository, as code in a sentence names them.
FILE = re.compile(
    r"(?:kproba|workflow|config|profiles|benchmarks|container|docs|tests)/[\w./-]+"
    r"\.(?:py|smk|yaml|md|def|sh|csv|txt)"
)
# Configurations that a reader writes, by the guides.
WRITTEN = {
    f"config/{name}.yaml" for name in ("pets", "packed", "voc_comparison", "balls")
}


def parser() -> MarkdownIt:
    markdown = MarkdownIt("gfm-like", {"linkify": False})
    return markdown.use(anchors_plugin, max_level=6)  # GitHub's names of anchors


@cache
def tokens(page: Path) -> list[Token]:
    """All tokens of a page, those inside of paragraphs too."""
    found = parser().parse(page.read_text(encoding="utf-8"))
    return [part for token in found for part in (token, *(token.children or []))]


@cache
def anchors(page: Path) -> set[str]:
    return {str(t.attrs["id"]) for t in tokens(page) if t.type == "heading_open"}


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if target and not re.match(r"[a-z]+:", str(target)):
            yield unquote(str(target))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [
        token.content
        for token in tokens(page)
        if token.type == "fence" and token.info.split(" ")[0] == language
    ]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each call of kproba or snakemake, in blocks and in sentences."""
    texts = [token.content for token in tokens(page) if token.type == "code_inline"]
    for block in blocks(page, "bash"):
        texts += block.replace("\\\n", " ").splitlines()
    for text in texts:
        for call in re.split(r"[|;&]|\$\(", text.split(" #")[0]):
            words = call.split()
            while words and "=" in words[0]:  # variables
                words = words[1:]
            if words and words[0] in ("kproba", "snakemake"):
                yield words


@cache
def options() -> dict[str, set[str]]:
    """The options of snakemake and of each command of kproba."""
    found = {"snakemake": set(get_argument_parser()._option_string_actions)}
    kproba = build_parser()
    found["kproba"] = set(kproba._option_string_actions)
    for action in kproba._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                found[f"kproba {name}"] = set(command._option_string_actions)
    found["kproba run"] |= found["snakemake"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_exist(name):
    page = ROOT / name
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: the page has no such heading")
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_commands_have_their_options(name):
    wrong = []
    for words in commands(ROOT / name):
        key = words[0]
        if key == "kproba" and len(words) > 1 and re.fullmatch("[a-z]+", words[1]):
            key = f"kproba {words[1]}"
        if key not in options():
            wrong.append(f"{' '.join(words)}: no such command")
            continue
        given = {word.split("=")[0] for word in words if re.match("--?[a-z]", word)}
        unknown = given - options()[key]
        wrong += [f"{' '.join(words)}: {key} has no {word}" for word in unknown]
    assert not wrong


@pytest.mark.parametrize("name", CHECKED)
def test_files_in_sentences_exist(name):
    code = " ".join(t.content for t in tokens(ROOT / name) if t.type == "code_inline")
    named = set(FILE.findall(code)) - WRITTEN
    if name == "CHANGELOG.md":  # it names files of earlier versions
        named = set()
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("name", CHECKED)
def test_code_can_be_read(name):
    page = ROOT / name
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)
    shell = "\n".join(blocks(page, "bash"))
    if shell:
        done = subprocess.run(
            ["bash", "-n"], input=shell, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("name", CHECKED)
def test_configurations_are_valid(name):
    page = ROOT / name
    written = blocks(page, "yaml")
    for block in blocks(page, "bash"):  # files that a command writes
        written += re.findall(r"<<'END'\n(.*?)^END$", block, re.MULTILINE | re.DOTALL)
    for text in written:
        config = yaml.safe_load(text)
        if not isinstance(config, dict) or "extensions" in config:
            continue  # the files of extensions are not here
        if set(config) <= set(SCHEMA["properties"]):
            check(merged(SMALLEST, config), SCHEMA_PATH)


def test_every_page_is_in_the_navigation_of_the_site():
    listed = {"index.md"}
    settings = ast.parse((ROOT / "docs" / "conf.py").read_text())
    for node in settings.body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            for page, parts in eval(ast.unparse(node.value)).items():
                folder = Path(page).parent
                listed |= {
                    f"{folder / entry}.md" for part in parts.values() for entry in part
                }
    pages = {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}
    assert pages == listed

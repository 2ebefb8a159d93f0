"""Settings of the documentation site: `make docs` builds it into build/docs.

The pages are Markdown that also reads well on GitHub. So what only the site needs is
here: the navigation, and links to files of the repository that are no pages.
"""

import re
from pathlib import Path

from pygments.lexers import PythonLexer  # type: ignore[import-untyped]
from sphinx.application import Sphinx

from kproba import __version__

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/kproba/kproba"

project = "KProBA"
author = "The KProBA developers"
release = version = __version__
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["figures", "README.md"]

# Markdown: anchors of headings as on GitHub, and formulas between dollar signs.
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Docstrings: names between single backticks are code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# References to types are not linked, because the pages show only the central modules.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"KProBA {release}"
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Caption and pages of each part of the navigation, by the page that it belongs to.
NAVIGATION: dict[str, dict[str, list[str]]] = {
    "index": {
        "Start": ["install", "glossary"],
        "Guides": ["guides/photographs", "guides/research", "guides/cluster"],
        "Use": [
            *("commands", "configuration", "data", "report", "deploy", "reuse"),
            "troubleshooting",
        ],
        "Background": [
            *("how_it_works", "methods/index", "protocol", "recipes", "training"),
        ],
        "Numbers": ["results", "measured/README", "costs", "status", "notes/index"],
        "Change it": ["extending", "architecture", "api/index"],
    },
    "methods/index": {
        "": [
            *("kproba", "barm", "star", "dkd", "ridge", "ssul", "ssul_light"),
            *("plop", "mib", "lwf", "finetune", "joint", "memory", "choices"),
            *("losses", "pseudo_labels", "bank"),
        ]
    },
    "notes/index": {"": ["measurements", "choices"]},
    "api/index": {
        "": [
            *("kproba", "data", "network", "bank", "methods", "results", "plan"),
            "extend",
        ]
    },
}

# A relative link of Markdown: after "](" the target, then perhaps an anchor.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


def link_files(text: str, folder: Path) -> str:
    """Replace links to files that are no pages or pictures by links to the repository.

    Args:
        text: Markdown of a page.
        folder: The folder of the page.
    """

    def address(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        in_site = path.is_relative_to(DOCS) and path.suffix in (".md", ".png", ".svg")
        if in_site or not path.exists():
            return match[0]  # Sphinx reports links that lead nowhere
        kind = "tree" if path.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}{match[2] or ''}"

    return LINK.sub(address, text)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Adapt the Markdown of a page to the site: its links and its navigation."""
    source[0] = link_files(source[0], (DOCS / name).parent)
    for caption, pages in NAVIGATION.get(name, {}).items():
        options = f":hidden:\n:caption: {caption}\n" if caption else ":hidden:\n"
        listing = "\n".join(pages)
        source[0] += f"\n\n```{{toctree}}\n{options}\n{listing}\n```\n"


def read_docstring(
    app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    """Prepare a docstring, which is plain text, for reStructuredText.

    Bars, stars and backslashes of formulas are markup there. Indented blocks in the
    docstring of a module are code or formulas. (In functions they are sections.)
    """
    prepared: list[str] = []
    for line in lines:
        is_block = what == "module" and line.startswith("    ")
        if is_block and not (prepared and prepared[-1]):
            starts = not any(prepared) or not _last(prepared).startswith("    ")
            prepared += ["::", ""] if starts else []
        parts = line.split("`")
        if not is_block:  # even parts are outside of backticks
            parts[::2] = [re.sub(r"([|*\\])", r"\\\1", part) for part in parts[::2]]
        prepared.append("`".join(parts))
    lines[:] = prepared


def _last(lines: list[str]) -> str:
    """The last line that is not empty."""
    return next(line for line in reversed(lines) if line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what is not a plain setting."""
    app.add_lexer("snakemake", PythonLexer)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Tables in the documents, written from the measured results in docs/measured/.

    python -m kproba.results.documents            # write all tables again
    python -m kproba.results.documents --check    # only list documents that differ

A table stands between two lines, such as

    <!-- table: animals_5-2 columns=old,new,all -->
    <!-- end -->

The first line names the kind of table, files of docs/measured/ and options. All between
the two lines is written by this program; the sentences around are written by hand. The
kinds are those of `kproba.results.document_tables`:

    table: FILE          a row per method, for each experiment of the file
    summary:             a row per experiment: the reference, the next best and joint
    compare: methods=..  a row per method, a column per experiment
    method: METHOD       a row per experiment, for the page of a method
    choice: FILE         the alternatives of a choice (`kproba.results.choice`)
    files:               the list of measured files

`summary`, `compare` and `method` show all files that docs/measured/files.csv lists as
comparisons, or the files that are named.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kproba.results.document_tables import TABLES
from kproba.results.measured import Measured
from kproba.runtime.files import atomic_path
from kproba.runtime.logs import exit_on_error
from kproba.runtime.records import ArtifactError

FOLDER = Path("docs/measured")
START = re.compile(rf"<!-- ({'|'.join(TABLES)}):(.*) -->")
END = "<!-- end -->"


def fill(text: str, measured: Measured, where: str = "the text") -> str:
    """Write the tables of a document.

    Args:
        text: Markdown.
        measured: The results.
        where: Name of the document, for messages.

    Raises:
        ArtifactError: A table has no end or cannot be made. It is a ValueError.
    """
    lines: list[str] = []
    opened = 0  # number of the line that began a table
    for number, line in enumerate(text.split("\n"), 1):
        start = START.fullmatch(line)
        if bool(opened) == bool(start) and (start or line == END):
            missing = "no end" if opened else "an end without a beginning"
            raise ArtifactError(
                f"Expected each table between a line such as `<!-- table: NAME -->` "
                f"and the line `{END}`, but got {missing} in {where}, line "
                f"{opened or number}. Add the other line."
            )
        if start:
            opened = number
            try:
                table = _render(start[1], start[2].split(), measured)
            except (ArtifactError, OSError) as error:
                raise ArtifactError(f"{where}, line {number}: {error}") from error
            lines += [line, "", table, ""]
        elif line == END:
            opened = 0
        if not opened:
            lines.append(line)
    if opened:
        raise ArtifactError(
            f"Expected the line `{END}` after each table, but got none in {where}, "
            f"line {opened}. Add it."
        )
    return "\n".join(lines)


def _render(kind: str, words: list[str], measured: Measured) -> str:
    """The table that a line describes."""
    render, known = TABLES[kind]
    names = [word for word in words if "=" not in word]
    pairs = (word.split("=", 1) for word in words if "=" in word)
    options = dict(pairs)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ArtifactError(
            f"Expected an option of {', '.join(known) or 'none'} for '{kind}', but got "
            f"'{unknown[0]}'. Correct the word."
        )
    return render(measured, names, options)


def find_documents(root: Path) -> Iterator[Path]:
    """README.md and all pages below docs/, sorted."""
    yield root / "README.md"
    yield from sorted((root / "docs").rglob("*.md"))


def update(root: Path, *, check: bool = False) -> list[Path]:
    """Write the tables of all documents.

    Args:
        root: Folder of the project.
        check: Write nothing.

    Returns:
        The documents that were, or would be, changed.

    Raises:
        ArtifactError: As `fill`; then no document is written.
    """
    measured = Measured(root / FOLDER)
    changed = {}
    for path in find_documents(root):
        text = path.read_text(encoding="utf-8")
        filled = fill(text, measured, str(path.relative_to(root)))
        if filled != text:
            changed[path] = filled
    if not check:
        for path, filled in changed.items():
            with atomic_path(path) as temporary:
                temporary.write_text(filled, encoding="utf-8")
    return list(changed)


def main() -> int:
    """Write, or check, the tables of the documents below the working directory."""
    words = sys.argv[1:]
    if words not in ([], ["--check"]):
        usage = "usage: python -m kproba.results.documents [--check]"
        print(usage, file=sys.stderr)
        return 2
    with exit_on_error():
        changed = update(Path(), check=bool(words))
        for path in changed:
            print(f"{path} {'differs' if words else 'written'}")
    return 1 if words and changed else 0


if __name__ == "__main__":
    sys.exit(main())

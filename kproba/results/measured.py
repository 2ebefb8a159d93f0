"""The measured results behind the documents: the CSV files of docs/measured/.

A results file is a summary.csv (`kproba.results.tables`), as it is or with fewer
columns: NAME.csv or NAME_summary.csv. It may have a further column `machine`, the name
of the machine of each run.

methods.csv says what a method is (`Kinds`), and files.csv lists all other files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from kproba.results import measures
from kproba.results.comparison import (
    RUN,
    describe_run,
    experiments,
    last_steps,
    unfinished_runs,
)
from kproba.results.tables import EXPERIMENT
from kproba.runtime.records import ArtifactError
from kproba.runtime.tables import read_table

KINDS = ("method", "variant", "memory", "joint")
LIST_OF_METHODS = "methods.csv"
LIST_OF_FILES = "files.csv"
REMEDY = "Copy the file again from the results, or correct it."


@dataclass(frozen=True)
class MethodKind:
    """What a method is.

    Attributes:
        pattern: Its name, or a pattern such as "klda_*".
        kind: "method": of the literature or of this project; "variant": of one of
            these, which is not counted as another method; "memory": keeps old images;
            "joint": trained on everything at once.
        shown: Its name in documents; "" for the name itself.
    """

    pattern: str
    kind: str
    shown: str


@dataclass(frozen=True)
class Results:
    """The runs of one experiment after the last step.

    Attributes:
        key: Dataset, task and setting.
        ended: A row per run.
        source: The file.
    """

    key: tuple[str, ...]
    ended: pd.DataFrame
    source: Path

    @property
    def title(self) -> str:
        """Such as "animals 5-2, overlap"."""
        dataset, task, setting = self.key
        return f"{dataset} {task}, {setting}"

    @property
    def methods(self) -> list[str]:
        """The methods in the order of the file."""
        return list(dict.fromkeys(self.ended["method"]))


class Measured:
    """The files of a folder of measured results.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: It has no list of methods.
        ArtifactError: The list is damaged. It is a ValueError.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._known = _read_kinds(self.folder / LIST_OF_METHODS)

    def method(self, name: str) -> MethodKind:
        """What a method is.

        Raises:
            ArtifactError: The list of methods does not have it.
        """
        for entry in self._known:
            if fnmatchcase(name, entry.pattern):
                return entry
        raise ArtifactError(
            f"Expected the method '{name}' in {self.folder / LIST_OF_METHODS}, but it "
            f"is not there. Add a line such as `{name},variant,`; the kinds are "
            f"{', '.join(KINDS)}."
        )

    def shown(self, name: str) -> str:
        """The name of a method as Markdown."""
        text = self.method(name).shown or name
        return text if "`" in text else f"`{text}`"

    def path(self, name: str) -> Path:
        """The file NAME.csv or NAME_summary.csv.

        Raises:
            ArtifactError: There is no such file, or there are both.
        """
        paths = [self.folder / f"{name}{end}.csv" for end in ("", "_summary")]
        found = [path for path in paths if path.is_file()]
        if len(found) != 1:
            both = "both exist" if found else "neither exists"
            raise ArtifactError(
                f"Expected {paths[0]} or {paths[1]}, but {both}. Copy the summary.csv "
                f"of the results to one of them, or correct the name in the document."
            )
        return found[0]

    def results(self, name: str) -> list[Results]:
        """The experiments of a results file, in their order.

        Raises:
            ArtifactError: The file is missing or damaged, or a run is unfinished or
                there twice.
        """
        path = self.path(name)
        columns: dict[str, type] = dict.fromkeys((*EXPERIMENT, "method"), str)
        columns |= {"seed": int, "step": int, measures.ALL.name: float}
        more = {m.name: float for m in measures.all_measures() if m.name not in columns}
        table = read_table(path, columns, optional=more, remedy=REMEDY)
        ended = last_steps(table)
        if unfinished := unfinished_runs(table, ended):
            raise ArtifactError(
                f"Expected all runs up to the last step in {path}, but got unfinished "
                f"ones: {'; '.join(unfinished)}. Finish them, or delete their rows."
            )
        if ended.duplicated(RUN).any():
            run = ended.loc[ended.duplicated(RUN), RUN].iloc[0]
            raise ArtifactError(
                f"Expected each run once in {path}, but got {describe_run(run)} twice. "
                f"{REMEDY}"
            )
        for method in dict.fromkeys(ended["method"]):
            self.method(method)  # refuses one that is not listed
        return [Results(key, rows, path) for key, rows in experiments(ended)]

    def files(self) -> pd.DataFrame:
        """The list of files: text columns file, comparison, version, what, command."""
        columns = ("file", "comparison", "version", "what", "command")
        path = self.folder / LIST_OF_FILES
        return read_table(path, dict.fromkeys(columns, str), remedy=REMEDY)

    def comparisons(self) -> list[Results]:
        """The experiments of all files that are listed as comparisons of methods."""
        table = self.files()
        names = table.loc[table["comparison"] == "yes", "file"]
        return [
            results
            for name in names
            for results in self.results(name.removesuffix(".csv"))
        ]

    def costs(self, name: str, methods: Sequence[str]) -> pd.DataFrame:
        """Numbers per method that are not of a run, such as parameters.

        Args:
            name: The file NAME.csv: a column `method`, all others are numbers.
            methods: The methods that it must have.

        Returns:
            The numbers by method.

        Raises:
            ArtifactError: The file is missing or damaged, or lacks a method.
        """
        path = self.path(name)
        head = read_table(path, {"method": str}, remedy=REMEDY)
        others = {str(column): float for column in head if column != "method"}
        table = read_table(path, {"method": str, **others}, remedy=REMEDY)
        missing = [method for method in methods if method not in set(table["method"])]
        if missing or table["method"].duplicated().any():
            fault = f"{', '.join(missing)} is missing" if missing else "one is twice"
            raise ArtifactError(
                f"Expected each of {', '.join(methods)} once in {path}, but {fault}. "
                f"{REMEDY}"
            )
        return table.set_index("method")


def _read_kinds(path: Path) -> list[MethodKind]:
    columns = {"method": str, "kind": str, "shown": str}
    table = read_table(path, columns, remedy=REMEDY)
    wrong = table[~table["kind"].isin(KINDS)]
    if len(wrong):
        name, kind = wrong.iloc[0][["method", "kind"]]
        raise ArtifactError(
            f"Expected a kind of {', '.join(KINDS)} for '{name}' in {path}, but got "
            f"'{kind}'. {REMEDY}"
        )
    rows = table[list(columns)].itertuples(index=False, name=None)
    return [MethodKind(*row) for row in rows]

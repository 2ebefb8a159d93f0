"""Where the files of a dataset are: an argument of jobs, so this loads no library."""

import json
from typing import NamedTuple


class Folders(NamedTuple):
    """Where the files of a dataset or addition are.

    Attributes:
        images: Its folder, to which paths in its index are relative.
        masks: The folder of its converted masks, below results/.
    """

    images: str
    masks: str


def parse_folders(text: str) -> dict[str, Folders]:
    """Folders by dataset or addition, from the JSON of a job's argument."""
    return {name: Folders(*entry) for name, entry in json.loads(text).items()}

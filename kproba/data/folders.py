"""Folders of a dataset, as an argument of jobs; this module loads no library."""

import json
from typing import NamedTuple


class Folders(NamedTuple):
    """The folders of a dataset or addition.

    Attributes:
        images: Folder of the dataset; paths in its index are relative to it.
        masks: The folder of its converted masks, below results/.
    """

    images: str
    masks: str


def parse_folders(text: str) -> dict[str, Folders]:
    """Folders by dataset or addition, from the JSON of a job's argument."""
    return {name: Folders(*entry) for name, entry in json.loads(text).items()}

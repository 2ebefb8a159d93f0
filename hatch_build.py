"""Puts the workflow into the wheel; an editable installation uses the clone's files."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Files and folders at the top of the repository that `kproba.project` looks for.
FILES = ("Snakefile", "workflow", "config", "profiles", "envs", "constraints.txt")


class ProjectFiles(BuildHookInterface):
    """Copies the files of the workflow to kproba/project_files/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files that a wheel of the version "standard" gets."""
        if version == "standard":
            places = {name: f"kproba/project_files/{name}" for name in FILES}
            build_data["force_include"].update(places)

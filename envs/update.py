"""Writes the digest of the package's requirements into envs/kproba.yaml.

Snakemake makes a new environment when that file changes. With the digest in it, this
also happens when the requirements of the package change.

python envs/update.py
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "kproba.yaml"
VERSION = re.compile(r'^__version__ = "(.*)"', re.MULTILINE)
LINE = re.compile(r"^# requirements: .*$", re.MULTILINE)


def requirements_digest() -> str:
    """A digest of all that an installation of the package depends on."""
    root = HERE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = ("dependencies", "scripts", "requires-python")
    content = {name: project[name] for name in names}
    content["constraints"] = (root / "constraints.txt").read_text()
    package = (root / "kproba" / "__init__.py").read_text()
    content["version"] = VERSION.findall(package)
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    """Replace the line with the digest."""
    line = f"# requirements: {requirements_digest()}"
    FILE.write_text(LINE.sub(line, FILE.read_text()))


if __name__ == "__main__":
    main()

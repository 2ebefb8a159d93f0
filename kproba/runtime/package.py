"""The folder of this package, for all modules that need it.

It is found by import, not counted in levels from a module's own file: it stays right
when modules move.
"""

from pathlib import Path

import kproba

PACKAGE = Path(kproba.__file__).parent

"""The folder of this package, for all modules that need it.

It is found by import, so it stays correct when modules move.
"""

from pathlib import Path

import kproba

PACKAGE = Path(kproba.__file__).parent

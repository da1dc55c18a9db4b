"""With this folder on PYTHONPATH, the hospital's processes do trivial work: `client.work` is the `work.py` beside this file.

Everything else in them is the product's own: node, executor, gate. Python imports a module of this name at its start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class _TrivialWork(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "client.work":
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("work.py"))


sys.meta_path.insert(0, _TrivialWork())

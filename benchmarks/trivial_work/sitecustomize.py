"""With this folder on PYTHONPATH, the hospital's processes do trivial work: `client.work.do` is the `do` of `work.py` beside this file.

Everything else in them is the product's own: node, executor, gate. Python imports a module of this name at its start. The module says
that it is the installed `client/work.py`, since a site refuses to run anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


class _WithTrivialWork(Loader):
    """The module as installed, with another `do`."""

    def __init__(self, installed: Loader) -> None:
        self._installed = installed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._installed.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._installed.exec_module(module)
        spec = spec_from_file_location("benchmarks.trivial_work.work", Path(__file__).with_name("work.py"))
        assert spec is not None and spec.loader is not None
        trivial = module_from_spec(spec)
        spec.loader.exec_module(trivial)
        vars(module)["do"] = trivial.do


class _TrivialWork(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "client.work":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithTrivialWork(spec.loader)
        return spec


sys.meta_path.insert(0, _TrivialWork())

"""torchvision next to a CPU build of torch.

torchvision's published wheel is built for CUDA. Beside a CPU torch its compiled operators can't be loaded, and `import torchvision` ends in
`operator torchvision::nms does not exist`, although its models and transforms need none of them. Declaring the two operators' names
is enough. It is done only after the import failed exactly that way; where torchvision imports, nothing is touched.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

_FAULT = "operator torchvision::nms does not exist"
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

#: The declarations last as long as this reference.
_declared: Any = None


def import_torchvision() -> ModuleType:
    """The `torchvision` package with `models` and `transforms.v2` usable.

    Box operators (nms, roi_align, ...) stay unavailable where the compiled part does not load; calling one raises RuntimeError.
    Every other failure of the import is raised as it is.
    """
    global _declared
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as fault:
        if _FAULT not in str(fault):
            raise
    # Submodules that were imported before the fault would not be bound to the new package object.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library: Any = torch.library  # not annotated throughout
    _declared = library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        _declared.define(operator)
    return importlib.import_module("torchvision")

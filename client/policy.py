"""What the hospital's policy makes of a study: it refuses what is too much, and takes away what may not leave.

The policy stands in the site's profile. No study and no approval widens it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import PolicyError
from shared.profile import Output, Policy
from shared.results import ClassRow, Estimate, Evaluated, HeadResult, MaskResult, Prepared
from shared.study import Study

_UNDEFINED = Estimate(value=None)


def require_within(study: Study, policy: Policy) -> None:
    """Raises PolicyError where the study asks for more than can be clamped."""
    if study.federation.rounds > policy.maximum_rounds:
        raise PolicyError(
            f"the study has {study.federation.rounds} rounds, but policy.maximum_rounds of the profile is {policy.maximum_rounds}"
        )


def smallest_cell(study: Study, policy: Policy) -> int:
    """Images that a histogram's cell must count to leave: the larger of what the study and the hospital ask for."""
    return max(study.evaluation.minimum_cell, policy.minimum_cell)


def clamped(evaluated: Evaluated, policy: Policy) -> Evaluated:
    """Without the figures that may not leave; what remains keeps its meaning. Raises PolicyError where nothing would remain."""
    allowed: set[Output] = set(policy.allowed_outputs)
    if "network" not in allowed:
        raise PolicyError("policy.allowed_outputs of the profile lets no evaluation leave: it does not name 'network'")
    if evaluated.noised_masks is not None:
        return evaluated
    if evaluated.masks is not None:
        return evaluated.model_copy(update={"masks": _masks(evaluated.masks, allowed)})
    changes: dict[str, object] = {}
    for name in ("network", "svm", "svm_paper"):
        head: HeadResult | None = getattr(evaluated, name)
        leaves = head is not None and (name == "network" or "svm" in allowed)
        changes[name] = _head(head, allowed) if head is not None and leaves else None
    if "svm" not in allowed:
        changes["svm_choice"] = None
    if "descriptors" not in allowed:
        changes["descriptors"] = None
    return evaluated.model_copy(update=changes)


def clamped_preparation(prepared: Prepared, policy: Policy) -> Prepared:
    """Its baseline as `clamped`, or none where none may leave; tags only where they may."""
    if "shared_images" not in policy.allowed_outputs:
        prepared = prepared.model_copy(update={"tags": {}})
    if prepared.baseline is None or not {"network", "baseline"} <= set(policy.allowed_outputs):
        return prepared.model_copy(update={"baseline": None})
    return prepared.model_copy(update={"baseline": clamped(prepared.baseline, policy)})


def time_is_up(policy: Policy, *, begun: float, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Asked between two training steps: whether the round that began at `begun` (seconds of `clock`) has lasted too long."""
    return lambda: clock() - begun > policy.maximum_round_s


def _head(head: HeadResult, allowed: set[Output]) -> HeadResult:
    changes: dict[str, object] = {}
    if "histogram" not in allowed:
        changes["histogram"] = None
    if "gain" not in allowed:
        changes["gain"] = None
    if "classes" not in allowed:  # the rows stay, since the coordinator counts on one a class; the figures in them go
        changes["classes"] = [_without_figures(row) for row in head.classes]
    return head.model_copy(update=changes)


def _masks(masks: MaskResult, allowed: set[Output]) -> MaskResult:
    changes: dict[str, object] = {name: None for name in ("histogram", "gain") if name not in allowed}
    if "classes" not in allowed:
        changes["classes"] = [row.model_copy(update={"iou": _UNDEFINED, "dice": _UNDEFINED}) for row in masks.classes]
    return masks.model_copy(update=changes)


def _without_figures(row: ClassRow) -> ClassRow:
    figures = {name for name, field in ClassRow.model_fields.items() if field.annotation is Estimate}
    return row.model_copy(update=dict.fromkeys(figures, _UNDEFINED))

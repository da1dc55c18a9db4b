"""What a stage of training holds does not leave: the hospital's part (`shared.aggregation.apply_to_free` is the coordinator's)."""

from __future__ import annotations

from shared.errors import EgressError
from shared.messages import Instruction
from shared.study import Study
from shared.wire import Flat, Manifest, cut, unflatten


def without_held(update: Flat, tensors: Manifest | None, instruction: Instruction, study: Study) -> Flat:
    """Of an update (n,) of all that travels, the values that this round's stage leaves free: the update itself where it holds nothing.

    Raises EgressError where `tensors` are not those of the instruction, or where something that is held has changed: nobody would
    hear of that change.
    """
    held = study.training.held_in(instruction.round)
    if not held:
        return update
    if tensors is None or tensors.digest() != instruction.manifest_digest or tensors.size != update.size:
        raise EgressError("some layers are held in this round, but the update's tensors are not the instruction's")
    free = tensors.without(held)
    kept_back = {tensor.name for tensor in tensors.tensors} - {tensor.name for tensor in free.tensors}
    for name, values in unflatten(update, tensors).items():
        if name in kept_back and values.any():
            raise EgressError(f"'{name}' is held in round {instruction.round}, but training changed it")
    return cut(update, tensors, free)

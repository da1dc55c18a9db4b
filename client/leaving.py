"""The names of everything that can leave a hospital beside the update, taken from the schemas of the egress contract themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from shared.messages import Answer


def names_that_leave(root: type[BaseModel] = Answer) -> dict[str, tuple[str, ...]]:
    """Field names of each schema that an answer can hold, in the order in which they are met.

    Keyed by the schema's name and first sentence; where a field has named entries, these follow it in brackets.
    """
    found: dict[str, tuple[str, ...]] = {}
    waiting = [root]
    while waiting:
        model = waiting.pop(0)
        if title(model) in found:
            continue
        found[title(model)] = tuple(name + _entries(field.annotation) for name, field in model.model_fields.items())
        for field in model.model_fields.values():
            waiting.extend(_models_in(field.annotation))
    return found


def title(model: type[BaseModel]) -> str:
    """`Name: first sentence of what it is`."""
    said = " ".join((model.__doc__ or "").split()).split(". ")[0].rstrip(".")
    return f"{model.__name__}: {said}" if said else model.__name__


def _entries(annotation: Any) -> str:
    """' (read, total)' for an object whose keys are known."""
    if get_origin(annotation) is dict and get_origin(get_args(annotation)[0]) is Literal:
        return f" ({', '.join(get_args(get_args(annotation)[0]))})"
    return next((found for one in get_args(annotation) if (found := _entries(one))), "")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)

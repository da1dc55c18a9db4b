"""Tables of a Pydantic schema for people: every key with its type, its default and its meaning, from the schema's own descriptions."""

from __future__ import annotations

import json
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def tables(root: type[BaseModel], *, defaults: bool = False) -> str:
    """Markdown: one section with a table for `root` and for each model in it, in the order in which they are first met.

    `defaults` adds a column with the value that a key has when it is not given.
    """
    models: list[type[BaseModel]] = [root]
    for model in models:  # grows while it is walked
        for field in model.model_fields.values():
            models += [found for found in _models_in(field.annotation) if found not in models]
    return "\n".join(_section(model, defaults) for model in models)


def _section(model: type[BaseModel], defaults: bool) -> str:
    lines = [f"## {model.__name__}", "", *(_prose(model)), *_head(defaults)]
    for name, field in model.model_fields.items():
        kind = _type_words(field.annotation).replace("|", "\\|")
        meaning = (field.description or "").replace("|", "\\|")
        default = f" {_default_words(field)} |" if defaults else ""
        lines.append(f"| `{field.alias or name}` | {kind} |{default} {meaning} |")
    return "\n".join([*lines, ""])


def _head(defaults: bool) -> tuple[str, str]:
    if defaults:
        return "| key | type | default | meaning |", "|---|---|---|---|"
    return "| field | type | meaning |", "|---|---|---|"


def _default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "the defaults below"
    return f"`{json.dumps(value)}`" if value not in ({}, [], ()) else "none"


def _prose(model: type[BaseModel]) -> list[str]:
    text = re.sub(r"\s*\n\s*", " ", (model.__doc__ or "").strip())
    return [text, ""] if text else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _type_words(annotation: Any) -> str:
    """A type as a reader of JSON would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_words(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {_type_words(arguments[0])}"
    if origin is dict:
        return f"object of {_type_words(arguments[1])}, by {_type_words(arguments[0])}"
    if hasattr(annotation, "__metadata__"):
        return _type_words(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}.get(
        annotation, "anything"
    )

"""docs/report.md out of the schema's own descriptions: `python -m server.report.document > docs/report.md`."""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from server.report.schema import Report

_INTRODUCTION = """# The run's report

`consilium-server report runs/NAME` writes two files into the run's folder, from its records alone and for a run that failed or was
stopped too:

- `report.html` for people: one file that needs nothing else, for screen, phone and paper;
- `report.json` for programs: every figure of the page, and more.

This page describes `report.json`. It is made from the schema by `python -m server.report.document > docs/report.md`; a test holds the
two together. A field may be null only where its type says so.

Paths asked for most: `sites.<site>.svm.auc.value` (and `.low`, `.high`, `.images`), `sites.<site>.network.auc.value`,
`pooled.svm.auc.value`, `pooled.svm.gain.auc.low` (above 0: training is shown to have helped), `run.state`, `evaluated`, `synthetic`.
"""


def markdown() -> str:
    """The page: a table of fields for each model, in the order in which they are first met."""
    models: list[type[BaseModel]] = [Report]
    for model in models:  # grows while it is walked
        for field in model.model_fields.values():
            models += [found for found in _models_in(field.annotation) if found not in models]
    return "\n".join([_INTRODUCTION, *(_section(model) for model in models)])


def _section(model: type[BaseModel]) -> str:
    lines = [f"## {model.__name__}", "", *(_prose(model)), "| field | type | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        kind = _type_words(field.annotation).replace("|", "\\|")
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {kind} | {meaning} |")
    return "\n".join([*lines, ""])


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
    if origin is list:
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


if __name__ == "__main__":
    print(markdown(), end="")

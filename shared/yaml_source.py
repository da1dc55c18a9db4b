"""YAML read with line numbers, so that a mistake is named with its file and line.

Schema errors of Pydantic come out as sentences: `studies/x.yaml:12: unknown key 'batchsize' in training; did you mean 'batch_size'?`
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import InputError

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

#: No study or profile comes near it.
MOST_ITEMS = 100_000


class _Loader(yaml.SafeLoader):
    """SafeLoader that notes the line of every key and item and refuses a key given twice."""


@dataclass(frozen=True)
class YamlSource:
    """One parsed YAML file: its data and, for each key path, the line (1-based) where it stands."""

    path: Path
    data: Any
    lines: Mapping[Key, int]

    def line_of(self, key: Key) -> int:
        """Line of `key`, or of its nearest parent that stands in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def read_yaml(path: Path, error: type[InputError] = InputError) -> YamlSource:
    """Parse `path`. Raises `error` (a sentence with file and line) where it is missing or no valid YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: can't be read as UTF-8 text: {problem}") from None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Key, int] = {(): 1}
            if node is not None:
                _note_lines(node, (), lines, frozenset(), path, error)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise error(f"{path}:{line}: not valid YAML: {problem.problem or problem.context}") from None
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date or number that is none
        raise error(f"{path}: not valid YAML: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{path}: expected keys and values at the top level, but got {type(data).__name__}")
    return YamlSource(path, data, lines)


def _note_lines(
    node: yaml.Node, key: Key, lines: dict[Key, int], above: frozenset[int], path: Path, error: type[InputError]
) -> None:
    if isinstance(node, yaml.ScalarNode):
        return
    here = f"{path}:{node.start_mark.line + 1}"
    if id(node) in above:
        raise error(f"{here}: not valid YAML here: an alias refers to itself")
    if len(lines) > MOST_ITEMS:  # aliases of aliases multiply: a few lines can mean billions of items
        raise error(f"{here}: the file means more than {MOST_ITEMS} items")
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise error(f"{path}:{line}: expected a plain key, but got a list or mapping")
            name = name_node.value
            if name in seen:
                raise error(f"{path}:{line}: key '{name}' is given twice")
            seen.add(name)
            lines[(*key, name)] = line
            _note_lines(value_node, (*key, name), lines, above, path, error)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, index)] = item.start_mark.line + 1
            _note_lines(item, (*key, index), lines, above, path, error)


def validate(source: YamlSource, schema: type[Model], error: type[InputError]) -> Model:
    """Build `schema` from `source`; every schema mistake becomes one line of the raised `error`."""
    try:
        return schema.model_validate(source.data)
    except ValidationError as problem:
        sentences = [_sentence(source, schema, dict(item)) for item in problem.errors()]
        raise error("\n".join(dict.fromkeys(sentences))) from None


def _sentence(source: YamlSource, schema: type[BaseModel], item: Mapping[str, Any]) -> str:
    location: Key = tuple(item["loc"])
    place = f"{source.path}:{source.line_of(location)}"
    written = _written(source.data, location)
    dotted = ".".join(str(part) for part in written)
    kind = str(item["type"])
    if kind == "extra_forbidden":
        parent = ".".join(str(part) for part in written[:-1])
        where = f" in {parent}" if parent else ""
        fields = _fields_at(schema, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), fields, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known keys are {', '.join(sorted(fields))}"
        return f"{place}: unknown key '{location[-1]}'{where}{hint}"
    if kind == "missing":
        return f"{place}: key '{dotted}' is missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        told = item["ctx"]
        name = str(told["discriminator"]).rsplit("|", 1)[-1].strip(" '")
        key = f"{dotted}.{name}"
        if kind == "union_tag_not_found":
            return f"{place}: key '{key}' is missing"
        return f"{place}: {key}: expected one of {told['expected_tags']}, but got {told['tag']!r}"
    message = str(item["msg"]).removeprefix("Value error, ")
    got = item.get("input")
    shown = f", but got {got!r}" if isinstance(got, str | int | float | bool | type(None)) else ""
    if kind == "value_error":
        shown = ""
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        known = f" ({', '.join(fields)})" if kind != "dict_type" and (fields := _fields_at(schema, location)) else ""
        message = f"expected keys and values{known}"
    if not dotted:
        # What is about several keys is found at the top, and its sentence begins with the key to change.
        named = tuple(message.split(maxsplit=1)[0].rstrip(":,").split("."))
        if named[0] in source.data:
            return f"{source.path}:{source.line_of(named)}: {message}{shown}"
    return f"{place}: {dotted or 'the file'}: {message[0].lower() + message[1:]}{shown}"


def _written(data: Any, location: Key) -> Key:
    """`location` without what Pydantic adds to it: which member of a union it looked at."""
    kept: list[str | int] = []
    for index, part in enumerate(location):
        inside = isinstance(data, list) or (isinstance(data, dict) and part in data)
        if inside or index == len(location) - 1:
            kept.append(part)
        if inside and index < len(location) - 1:
            data = data[part]
    return tuple(kept)


def _fields_at(schema: type[BaseModel], location: Key) -> list[str]:
    """Names of the keys allowed at `location`, following nested models, unions and containers."""
    models: list[type[BaseModel]] = [schema]
    for part in location:
        step: list[type[BaseModel]] = []
        for model in models:
            if isinstance(part, str) and part in model.model_fields:
                step.extend(_models_in(model.model_fields[part].annotation))
        models = step or [model for model in models if part in _tags(model)] or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _tags(model: type[BaseModel]) -> set[Any]:
    """Values of fields that allow fixed ones only, as what tells members of a union apart does."""
    annotations = [field.annotation for field in model.model_fields.values()]
    return {value for one in annotations if get_origin(one) is Literal for value in get_args(one)}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]

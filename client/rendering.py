"""Templates of the hospital's pages, filled in."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def rendered(template: str, /, **values: Any) -> str:
    """HTML of the template's text, every value escaped but Markup. A value that the template reads and nobody gave is an error."""
    return _ENVIRONMENT.from_string(template).render(values)

"""Numbers that are computed with as they are written: constants of a mechanism are exact strings, not what a JSON number was rounded to."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _value(text: str) -> Fraction:
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError(f"expected a number, but got {text}") from None


def _positive(text: str) -> str:
    if _value(text) <= 0:
        raise ValueError(f"expected a number above 0, but got {text}")
    return text


def _share(text: str) -> str:
    if not 0 < _value(text) <= 1:
        raise ValueError(f"expected a number above 0, at most 1, but got {text}")
    return text


def _written(value: object) -> object:
    """A number of a YAML or JSON file in its shortest form; a text without the spaces of `32 / 350`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value.replace(" ", "") if isinstance(value, str) else value


#: A number above 0 as it is computed with: a fraction (32/350), or the shortest decimal text that reads back as the same double (`repr`).
Exact = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,20}(/[0-9]{1,20}|(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?)$"),
    AfterValidator(_positive),
]
Share = Annotated[Exact, AfterValidator(_share)]

#: The same in a file that people write: a plain number is taken too.
WrittenExact = Annotated[Exact, BeforeValidator(_written)]
WrittenShare = Annotated[Share, BeforeValidator(_written)]


def exact(value: float) -> str:
    """A double as an exact string: `float(exact(x)) == x`. Raises ValueError where it is not finite or not above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a finite number above 0, but got {value}")
    return repr(float(value))


def as_float(text: str) -> float:
    """The double nearest to an exact string."""
    return float(Fraction(text))

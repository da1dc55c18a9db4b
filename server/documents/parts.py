"""What a document is made of, whichever form it is written in. Texts are plain: every renderer escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fill:
    """Something that only people can say: who has to, and what. It stays visible until somebody does."""

    who: str
    what: str

    def __str__(self) -> str:
        return f"TO BE FILLED BY: {self.who} ({self.what})"


#: A piece of text, or what people must put in its place.
Text = str | Fill


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: Text


@dataclass(frozen=True, slots=True)
class Bullets:
    items: Sequence[Text]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names, and what is so."""

    rows: Sequence[tuple[str, Text]]


@dataclass(frozen=True, slots=True)
class Table:
    """The first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Paragraph | Bullets | Facts | Table


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """`name` is the file's name without its ending; `warning` stands above everything else."""

    name: str
    title: str
    made: str
    sections: Sequence[Section]
    warning: str | None = None

    @property
    def to_fill(self) -> int:
        """How many places people must fill."""
        texts: list[Text] = []
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Paragraph):
                    texts.append(block.text)
                elif isinstance(block, Bullets):
                    texts += block.items
                elif isinstance(block, Facts):
                    texts += [value for _, value in block.rows]
        return sum(isinstance(text, Fill) for text in texts)

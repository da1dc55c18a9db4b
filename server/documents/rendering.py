"""A document as Markdown and as HTML: the same words in both."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.documents.parts import Block, Bullets, Document, Facts, Fill, Paragraph, Text

_HERE = Path(__file__).parent
#: What would be markup in Markdown, wherever it stands.
_MARKUP = re.compile(r"([\\`*\[\]<>|~])")


def markdown(document: Document) -> str:
    """Whole, with a newline at its end."""
    parts = [f"# {_escaped(document.title)}", _escaped(document.made)]
    if document.to_fill:
        parts.append(f"**{_to_fill(document)}**")
    if document.warning is not None:
        parts.append(f"> **{_escaped(document.warning)}**")
    for section in document.sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def html(document: Document) -> str:
    """One file that needs nothing else, in the manner of a run's report; no script, no link out."""
    environment = Environment(
        loader=FileSystemLoader([_HERE, _HERE.parent / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("document.html.j2").render(
        document=document,
        to_fill=_to_fill(document) if document.to_fill else None,
        kind=lambda block: type(block).__name__,
        is_fill=lambda text: isinstance(text, Fill),
    )
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def _to_fill(document: Document) -> str:
    count = document.to_fill
    one = "1 place below can only be filled by people, and is"
    where = one if count == 1 else f"{count} places below can only be filled by people, and are"
    return f"{where} marked TO BE FILLED BY."


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return _text(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_text(item)}" for item in block.items)
    if isinstance(block, Facts):
        return _rows(["", ""], [[_escaped(name), _text(value)] for name, value in block.rows])
    rows = _rows([_escaped(one) for one in block.header], [[_escaped(cell) for cell in row] for row in block.rows])
    return f"{_escaped(block.caption)}\n\n{rows}"


def _rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: Text) -> str:
    said = _escaped(str(text))
    return f"**{said}**" if isinstance(text, Fill) else said


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))

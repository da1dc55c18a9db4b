"""`consilium-server check`: whether studies are valid and their networks can be built, trained and sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.errors import ConsiliumError, WeightsUnavailableError
from shared.models import build_network
from shared.models.segmenter import segmenter_of
from shared.models.summary import ModelSummary, summarise
from shared.study import Study, load_study

HEADINGS = ("study", "model", "parameters", "trained", "MB a round down / up", "input -> output", "DP", "digest")

#: Columns of a terminal below which the table would not fit.
NARROW = 140


def check_studies(paths: Sequence[Path], console: Console, *, weights_root: Path | None = None) -> list[ConsiliumError]:
    """Validate each study, build its network, run a batch of two forward and backward, and print a table of the sizes.

    A mistake is printed as a sentence and the next study is looked at; returns the mistakes, one a study at the most.
    Weights that can't be had on this machine are a warning: the architecture is checked with random ones, and the masks that hospitals
    will predict are not checked.
    An ensemble's members must be there: nothing else says what they are.
    A relative weight file is looked for in `weights_root`, or else in the working folder.
    """
    rows: list[tuple[str, ...]] = []
    notes: list[Text] = []
    mistakes: list[ConsiliumError] = []
    sentences: list[Text] = []
    obstacles: dict[str, list[str]] = {}
    for path in paths:
        try:
            study = load_study(path)
            summary, warnings = _summary(study, weights_root)
        except ConsiliumError as mistake:
            said = [line if str(path) in line else f"{path}: {line}" for line in str(mistake).splitlines()]
            mistakes.append(mistake)
            sentences.extend(Text(f"{mistake.code} {line}", style="red") for line in said)
            continue
        rows.append(_row(study, summary))
        notes.extend(Text(f"warning: {path}: {warning}", style="yellow") for warning in warnings)
        for obstacle in summary.dp_obstacles:
            obstacles.setdefault(obstacle, []).append(study.name)
    _print_rows(rows, console)
    notes.extend(Text(f"DP no: {reason} ({', '.join(names)})") for reason, names in obstacles.items())
    # Sentences are not wrapped: a file name or a digest in them must be there to copy.
    for line in (*notes, *sentences):
        console.print(line, soft_wrap=True)
    return mistakes


def _print_rows(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """One table; in a narrow terminal, where its columns would break numbers apart, one small table a study."""
    if console.width < NARROW:
        for row in rows:
            block = Table(show_header=False)
            for heading, value in zip(HEADINGS, row, strict=True):
                block.add_row(heading, value)
            console.print(block)
    elif rows:
        table = Table(title="Studies", title_justify="left")
        for heading in HEADINGS:
            numeric = heading in ("parameters", "trained", "MB a round down / up")
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _summary(study: Study, weights_root: Path | None) -> tuple[ModelSummary, list[str]]:
    warnings: list[str] = []
    try:
        network = build_network(study, weights_root=weights_root)
    except WeightsUnavailableError as problem:
        if study.model.members:  # which networks they are is in the files alone
            raise
        random = study.model_copy(update={"model": study.model.model_copy(update={"weights": "none"})})
        network = build_network(random)
        warnings.append(f"{problem}. The weights could not be loaded here; the model was checked with random ones")
    try:
        segmenter_of(study.preprocessing, root=weights_root)
    except WeightsUnavailableError as problem:
        warnings.append(f"{problem}. The hospitals need it to predict the masks; nothing else was left unchecked")
    return summarise(study, network=network), warnings


def _row(study: Study, summary: ModelSummary) -> tuple[str, ...]:
    options = [study.model.name]
    if study.model.attention != "none":
        at = study.model.cbam_at or study.model.se_at
        options.append(f"{study.model.attention} {at}" if at else study.model.attention)
    if study.model.stem != "plain":
        options.append(f"{study.model.stem} stem")
    if study.model.norm == "group":
        options.append("group norm")
    if study.model.freeze:
        options.append(f"{', '.join(study.model.freeze)} frozen")
    return (
        study.name,
        "; ".join(options),
        f"{summary.parameters:,}",
        f"{summary.trained_parameters:,}",
        f"{summary.bytes_down / 1e6:.1f} / {', then '.join(f'{sent / 1e6:.1f}' for sent in summary.bytes_up)}",
        f"{'x'.join(map(str, summary.input_shape))} -> {'x'.join(map(str, summary.output_shape))}",
        "compatible" if summary.dp_compatible else "no",
        study.digest()[:16],
    )

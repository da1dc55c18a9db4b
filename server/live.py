"""The live view of a run in the terminal; one plain line an event where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.run_folder import RunFolder
from server.run_progress import EventTail, RunProgress, SiteState
from shared.run_records import Event

#: Seconds between two looks at events.jsonl.
PAUSE = 0.2
#: Lines of the notes below the table.
NOTES = 4
#: Rounds in a site's sparkline.
SPARK = 16

_BARS = "▁▂▃▄▅▆▇█"
_DOING = {
    "waiting": "waiting",
    "prepare": "preparing its data",
    "train": "training",
    "evaluate": "evaluating",
    "aggregate": "aggregating",
    "done": "done",
}
_RUN_DOING = {
    "waiting": "waiting for the hospitals",
    "prepare": "the hospitals prepare their data",
    "train": "the hospitals train",
    "aggregate": "the updates are put together",
    "evaluate": "the hospitals evaluate the final model",
    "done": "done",
}


@dataclass(frozen=True, slots=True)
class SiteProgress:
    """What a site is at right now: `done` of `total` steps of `phase`, and the last loss."""

    phase: str
    done: int
    total: int
    loss: float | None

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0


def watch(
    folder: RunFolder,
    *,
    running: Callable[[], bool],
    site_progress: Callable[[], Mapping[str, SiteProgress]] | None,
    console: Console,
) -> None:
    """Show the run in `folder` until `running()` says no, then what came last. Ctrl-C passes on as KeyboardInterrupt,
    with the terminal as it was."""
    progress = RunProgress(folder.study().federation.rounds, {site: SiteState() for site in folder.expected_sites()})
    tail = EventTail(folder.path / "events.jsonl")
    if console.is_terminal:
        _watch_terminal(folder, progress, tail, running, site_progress, console)
    else:
        _watch_plain(progress, tail, running, console)


def _watch_plain(progress: RunProgress, tail: EventTail, running: Callable[[], bool], console: Console) -> None:
    going = True
    while going:
        going = running()
        for event in tail.fresh():
            progress.take(event)
            console.print(plain_line(event, progress), markup=False, highlight=False, soft_wrap=True)
        if going:
            time.sleep(PAUSE)


def _watch_terminal(
    folder: RunFolder,
    progress: RunProgress,
    tail: EventTail,
    running: Callable[[], bool],
    site_progress: Callable[[], Mapping[str, SiteProgress]] | None,
    console: Console,
) -> None:
    losses = folder.study().privacy is None

    def drawn() -> RenderableType:
        steps = site_progress() if site_progress is not None else {}
        return LiveView(folder.name, progress, steps, time.time(), sparks=_can_spark(console), losses=losses)

    with Live(drawn(), console=console, auto_refresh=False) as live:
        going = True
        while going:
            going = running()
            for event in tail.fresh():
                progress.take(event)
            live.update(drawn(), refresh=True)
            if going:
                time.sleep(PAUSE)


def _can_spark(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def plain_line(event: Event, progress: RunProgress) -> str:
    """One line for one event, without control characters: `00:12  round 3 of 8  north  done  loss 0.412`."""
    parts = [clock(max(0.0, event.at - (progress.started or event.at)))]
    if event.round is not None:
        parts.append(f"round {event.round} of {progress.rounds}")
    if event.site is not None:
        parts.append(event.site)
    if event.phase is not None:
        parts.append(_DOING[event.phase] if event.kind == "site" else _RUN_DOING[event.phase])
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.accuracy is not None:
        parts.append(f"accuracy {event.accuracy:.3f}")
    if event.text:
        parts.append(event.text)
    if event.kind == "round" and event.phase == "done" and (left := progress.time_left(event.at)):
        parts.append(f"about {clock(left)} of rounds left")
    return "".join(letter if letter.isprintable() else " " for letter in "  ".join(parts))


def clock(seconds: float) -> str:
    """`00:07`, `12:30`, `1:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def sparkline(values: Sequence[float]) -> str:
    """Block characters from the lowest to the highest of the finite `values`; empty for fewer than two."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    span = high - low
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in finite)


class LiveView:
    """One frame: a heading, the run's bar, a row a site, the last notes. Without `losses` for a private run, whose losses stay."""

    def __init__(
        self,
        name: str,
        progress: RunProgress,
        steps: Mapping[str, SiteProgress],
        now: float,
        *,
        sparks: bool = True,
        losses: bool = True,
    ) -> None:
        self._name, self._progress, self._steps, self._now = name, progress, steps, now
        self._sparks, self._losses = sparks, losses

    def __rich__(self) -> Group:
        bar = Table.grid(expand=True)  # a bar alone ends no line
        bar.add_row(self._bar())
        return Group(self._heading(), bar, self._table(), *self._notes())

    def _heading(self) -> Text:
        run = self._progress
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(self._name, style="bold")
        text.append(f"  round {run.round} of {run.rounds}: {_RUN_DOING[run.phase]}")
        text.append(f"   elapsed {clock(run.elapsed(self._now))}")
        left = run.time_left(self._now)
        if left is not None and run.phase != "done" and run.finished_rounds < run.rounds:
            text.append(f"   rounds done in about {clock(left)}")
        return text

    def _bar(self) -> ProgressBar:
        run = self._progress
        done = float(run.finished_rounds)
        if run.phase == "train" and run.sites:
            done += sum(self._share(site, state) for site, state in run.sites.items()) / len(run.sites)
        return ProgressBar(
            total=float(max(1, run.rounds)),
            completed=done if run.rounds else float(run.phase == "done"),
            complete_style="cyan",
            finished_style="green",
        )

    def _share(self, site: str, state: SiteState) -> float:
        if state.phase == "done":
            return 1.0
        step = self._step(site, state)
        return step.share if step is not None else 0.0

    def _step(self, site: str, state: SiteState) -> SiteProgress | None:
        """The site's own count of steps, unless it is a leftover of another phase."""
        step = self._steps.get(site)
        return step if step is not None and step.phase == state.phase and step.total > 0 else None

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("hospital", "is", "step"):
            table.add_column(title)
        if self._losses:
            table.add_column("loss", justify="right")
            table.add_column("accuracy", justify="right")
            if self._sparks:
                table.add_column("loss by round", no_wrap=True)
        for site, state in sorted(self._progress.sites.items()):
            step = self._step(site, state)
            row = [
                Text(site),
                Text(state.trouble, style="bold yellow") if state.trouble else Text(_DOING[state.phase]),
                Text(f"{step.done} of {step.total}" if step is not None else ""),
            ]
            table.add_row(*row, *(self._course(step, state) if self._losses else []))
        return table

    def _course(self, step: SiteProgress | None, state: SiteState) -> list[Text]:
        """Loss, accuracy, and the losses of the rounds."""
        loss = step.loss if step is not None and step.loss is not None else next(iter(state.losses[-1:]), None)
        cells = [
            Text("" if loss is None else f"{loss:.3f}"),
            Text("" if state.accuracy is None else f"{state.accuracy:.3f}"),
        ]
        return [*cells, Text(sparkline(state.losses[-SPARK:]), style="cyan")] if self._sparks else cells

    def _notes(self) -> list[Text]:
        return [
            Text(f"· {note}" if self._sparks else f"- {note}", style="dim") for note in self._progress.notes[-NOTES:]
        ]

"""Where a run stands, folded out of its events one by one: what the live view draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from shared.run_records import Event, Phase

#: Finished rounds that the estimate of the time left looks back on.
LOOK_BACK = 5


@dataclass
class SiteState:
    """One site as far as the events tell."""

    phase: Phase = "waiting"
    trouble: str | None = None
    accuracy: float | None = None
    losses: list[float] = field(default_factory=list)


@dataclass
class RunProgress:
    """The run so far. `take` is the only way to change it."""

    rounds: int
    sites: dict[str, SiteState]
    phase: Phase = "waiting"
    round: int = 0
    started: float | None = None
    ended: float | None = None
    finished_rounds: int = 0
    notes: list[str] = field(default_factory=list)
    _round_started: float | None = None
    _durations: list[float] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Go on by one event."""
        if self.started is None:
            self.started = event.at
        elif self.ended is not None and event.kind != "note" and not is_trouble(event):
            self.started, self.ended = event.at, None  # a run that goes on after its end counts its time anew
        if event.kind == "site" and event.site is not None:
            self._take_site(event, self.sites.setdefault(event.site, SiteState()))
        elif event.kind == "round" and event.phase is not None:
            self._take_round(event, event.phase)
        elif event.kind == "run" and event.phase is not None:
            self.phase, self.ended = event.phase, event.at if event.phase == "done" else None
        if event.text and (event.kind in ("run", "note") or is_trouble(event)):
            self.notes.append(f"{event.site}: {event.text}" if event.site else event.text)

    def _take_site(self, event: Event, site: SiteState) -> None:
        if event.phase is not None:
            site.phase, site.trouble = event.phase, None
        elif event.text:
            site.trouble = event.text
        if event.loss is not None:
            site.losses.append(event.loss)
        if event.accuracy is not None:
            site.accuracy = event.accuracy

    def _take_round(self, event: Event, phase: Phase) -> None:
        self.phase = phase
        if event.round is not None:
            self.round = event.round
        if phase == "train":
            self._round_started = event.at
        elif phase == "done" and self._round_started is not None:
            self._durations.append(event.at - self._round_started)
            self._round_started = None
            self.finished_rounds = self.round

    def elapsed(self, now: float) -> float:
        """Seconds since the first event, or the run's whole length once it has ended."""
        return 0.0 if self.started is None else max(0.0, (self.ended or now) - self.started)

    def time_left(self, now: float) -> float | None:
        """Seconds until the last round is done: the mean of the last finished rounds for each one to come.

        None before the first round is done. The final evaluation is not part of it. A round that takes longer than the
        mean counts as about to end, never as less than nothing.
        """
        if not self._durations:
            return None
        recent = self._durations[-LOOK_BACK:]
        mean = sum(recent) / len(recent)
        to_come = self.rounds - self.finished_rounds
        if self._round_started is None:
            return mean * to_come
        return mean * (to_come - 1) + max(0.0, mean - (now - self._round_started))


def is_trouble(event: Event) -> bool:
    """Whether a site's event tells of something that should not happen: a miss, a late answer, a node that ended."""
    return event.kind == "site" and event.phase is None and event.text is not None


class EventTail:
    """Reads what was appended to events.jsonl since the last call; a line that is still being written waits for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = 0.0

    def fresh(self) -> Iterator[Event]:
        """Events since the last call, in order. A line that is no event becomes a note that says so."""
        for line in self._lines():
            try:
                event = Event.model_validate_json(line)
            except ValidationError:
                text = f"{self._path.name}: a line that is no event was passed over"
                event = Event(at=self._last, kind="note", text=text)
            self._last = event.at
            yield event

    def _lines(self) -> Iterable[bytes]:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                whole = stream.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self._offset += len(whole) + 1
        return [line for line in whole.split(b"\n") if line.strip()]

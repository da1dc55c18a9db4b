"""The live view: what it says of given events, in a terminal and without one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from example_run import write_example_run
from private_run import write_private_run
from rich.console import Console

from server.live import LiveView, SiteProgress, clock, plain_line, sparkline, watch
from server.run_folder import RunFolder
from server.run_progress import EventTail, RunProgress, SiteState
from shared.run_records import Event

SITES = ("north", "south")


def run_events(rounds: int = 2) -> list[Event]:
    """A run that starts at second 1000; each round takes 10 s, and south misses round 2."""
    events = [Event(at=1000.0, kind="site", site=site, phase="waiting", text="online") for site in SITES]
    events.append(Event(at=1001.0, kind="round", round=0, phase="prepare"))
    for number in range(1, rounds + 1):
        begun = 1000.0 + 10 * number
        events.append(Event(at=begun, kind="round", round=number, phase="train"))
        events += [Event(at=begun, kind="site", round=number, site=site, phase="train") for site in SITES]
        events.append(
            Event(at=begun + 6, kind="site", round=number, site="north", phase="done", loss=0.7 / number, accuracy=0.6)
        )
        if number == 2:
            events.append(Event(at=begun + 7, kind="site", round=2, site="south", text="missing: refused, CONS-250"))
        else:
            events.append(Event(at=begun + 7, kind="site", round=number, site="south", phase="done", loss=0.5))
        events.append(Event(at=begun + 8, kind="round", round=number, phase="aggregate"))
        events.append(Event(at=begun + 10, kind="round", round=number, phase="done", loss=0.6 / number, accuracy=0.61))
    return events


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = write_example_run(tmp_path / "demo", finished_rounds=0, state="running", sites=SITES)
    (made.path / "events.jsonl").unlink()
    return made


def folded(events: list[Event], rounds: int = 8) -> RunProgress:
    progress = RunProgress(rounds, {site: SiteState() for site in SITES})
    for event in events:
        progress.take(event)
    return progress


def after(calls: int) -> Callable[[], bool]:
    """A run that goes on for `calls` questions."""
    left = iter(range(calls))
    return lambda: next(left, None) is not None


def test_without_a_terminal_every_event_is_one_line_without_control_characters(folder: RunFolder) -> None:
    for event in run_events():
        folder.note(event)
    folder.note(Event(at=1031.0, kind="note", text="odd \x1b[31mred\r\x07 text [bold]kept[/bold]"))
    out = io.StringIO()
    watch(folder, running=after(0), site_progress=None, console=Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert len(lines) == len(run_events()) + 1
    assert "00:16  round 1 of 8  north  done  loss 0.700  accuracy 0.600" in lines
    assert "00:20  round 1 of 8  done  loss 0.600  accuracy 0.610  about 01:10 of rounds left" in lines
    assert "00:27  round 2 of 8  south  missing: refused, CONS-250" in lines
    assert all(line.isprintable() for line in lines)
    assert lines[-1].endswith("[bold]kept[/bold]")


def test_events_that_come_while_watching_are_shown_once_and_in_order(folder: RunFolder) -> None:
    waiting = run_events()
    shown = len(waiting)

    def running() -> bool:
        if waiting:
            folder.note(waiting.pop(0))
        return bool(waiting)

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.live.PAUSE", 0.0)
        watch(folder, running=running, site_progress=None, console=Console(file=out))
    expected = folded([])
    lines = []
    for event in run_events():
        expected.take(event)
        lines.append(plain_line(event, expected))
    assert out.getvalue().splitlines() == lines
    assert len(lines) == shown


def test_a_line_that_is_still_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert list(tail.fresh()) == []
    first, second = (Event(at=float(n), kind="note", text=f"é{n}").model_dump_json() + "\n" for n in (1, 2))
    path.write_text(first + second[:10], encoding="utf-8")
    assert [event.text for event in tail.fresh()] == ["é1"]
    path.write_text(first + second, encoding="utf-8")
    assert [event.text for event in tail.fresh()] == ["é2"]
    assert list(tail.fresh()) == []


def test_a_damaged_line_is_said_and_the_rest_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = Event(at=5.0, kind="note", text="good").model_dump_json()
    path.write_text(f"{good}\n{{broken\n{good}\n")
    texts = [event.text for event in EventTail(path).fresh()]
    assert texts == ["good", "events.jsonl: a line that is no event was passed over", "good"]


def test_time_left_is_unknown_before_the_first_round_is_done() -> None:
    assert folded(run_events(1)[:-1]).time_left(1015.0) is None


def test_time_left_is_the_mean_round_for_each_round_to_come() -> None:
    progress = folded(run_events(2), rounds=8)
    assert progress.time_left(1030.0) == pytest.approx(6 * 10.0)


def test_time_left_within_a_round_takes_off_what_has_passed_but_never_more_than_the_round() -> None:
    progress = folded([*run_events(2), Event(at=1030.0, kind="round", round=3, phase="train")], rounds=8)
    assert progress.time_left(1034.0) == pytest.approx(6.0 + 5 * 10.0)
    assert progress.time_left(1060.0) == pytest.approx(5 * 10.0)


def test_time_left_follows_the_last_rounds_only() -> None:
    progress = RunProgress(20, {})
    at = 0.0
    for number, length in enumerate([100.0, 100.0, 2.0, 2.0, 2.0, 2.0, 2.0], start=1):
        progress.take(Event(at=at, kind="round", round=number, phase="train"))
        at += length
        progress.take(Event(at=at, kind="round", round=number, phase="done"))
    assert progress.time_left(at) == pytest.approx(13 * 2.0)


def test_a_run_that_goes_on_counts_its_time_anew_but_a_note_after_the_end_does_not() -> None:
    progress = folded([*run_events(1), Event(at=1021.0, kind="run", phase="done", text="stopped: Ctrl-C")])
    progress.take(Event(at=1500.0, kind="site", site="north", text="its node ended with status 0"))
    assert progress.elapsed(9999.0) == pytest.approx(21.0)
    progress.take(Event(at=2000.0, kind="site", site="north", phase="waiting", text="online"))
    assert progress.elapsed(2005.0) == pytest.approx(5.0)


def rendered(view: LiveView, *, width: int = 110) -> str:
    console = Console(file=io.StringIO(), record=True, force_terminal=True, width=width)
    console.print(view)
    return console.export_text()


def test_a_frame_shows_round_phases_steps_losses_and_who_is_missing() -> None:
    events = [*run_events(2), Event(at=1030.0, kind="round", round=3, phase="train")]
    events.append(Event(at=1030.0, kind="site", round=3, site="north", phase="train"))
    steps = {"north": SiteProgress("train", 30, 120, 0.321), "south": SiteProgress("train", 5, 9, 0.9)}
    text = rendered(LiveView("demo", folded(events), steps, 1034.0))
    assert "round 3 of 8: the hospitals train" in text
    assert "elapsed 00:34" in text
    assert "rounds done in about 00:56" in text
    assert "hospital  is" in text and "loss by round" in text
    north = next(line for line in text.splitlines() if line.startswith("north"))
    assert north.split()[1:6] == ["training", "30", "of", "120", "0.321"]
    assert sparkline([0.7, 0.35]) in north
    south = next(line for line in text.splitlines() if line.startswith("south"))
    assert "missing: refused, CONS-250" in south
    assert "· south: missing: refused, CONS-250" in text


def test_steps_left_over_from_another_phase_are_not_shown() -> None:
    progress = folded(run_events(1))
    text = rendered(LiveView("demo", progress, {"north": SiteProgress("train", 120, 120, 0.1)}, 1025.0))
    assert "120 of 120" not in text


def test_the_bar_moves_within_a_round_with_the_sites_steps() -> None:
    events = [Event(at=0.0, kind="round", round=1, phase="train")]
    events += [Event(at=0.0, kind="site", round=1, site=site, phase="train") for site in SITES]

    def filled(done: int) -> float:
        steps = {site: SiteProgress("train", done, 100, None) for site in SITES}
        return LiveView("demo", folded(events, rounds=2), steps, 1.0)._bar().completed

    assert filled(0) == pytest.approx(0.0)
    assert filled(50) == pytest.approx(0.5)
    assert filled(100) == pytest.approx(1.0)


def test_a_terminal_gets_the_last_frame_and_its_cursor_back(folder: RunFolder) -> None:
    for event in run_events():
        folder.note(event)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    watch(folder, running=after(2), site_progress=dict, console=console)
    assert "round 2 of 8" in out.getvalue()
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_passes_on_after_the_terminal_is_restored(folder: RunFolder, terminal: bool) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(folder, running=interrupted, site_progress=None, console=Console(file=out, force_terminal=terminal))
    if terminal:
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
    else:
        assert out.getvalue() == ""


def test_a_sparkline_spans_lowest_to_highest_and_ignores_what_is_not_finite() -> None:
    assert sparkline([3.0, 1.0, float("nan"), 2.0]) in ("█▁▄", "█▁▅")
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0]) == ""


def test_clock_times() -> None:
    assert [clock(seconds) for seconds in (0, 7.4, 750, 3900)] == ["00:00", "00:07", "12:30", "1:05:00"]


def test_a_private_run_has_no_column_of_losses(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "private")
    for event in run_events():
        folder.note(event.model_copy(update={"loss": None, "accuracy": None}))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, _environ={})
    watch(folder, running=lambda: False, site_progress=None, console=console)
    shown = out.getvalue()
    assert "hospital" in shown and "north" in shown
    assert "loss" not in shown and "accuracy" not in shown and "None" not in shown
    plain = io.StringIO()
    watch(folder, running=lambda: False, site_progress=None, console=Console(file=plain))
    assert "None" not in plain.getvalue() and "loss" not in plain.getvalue()

"""What was said in a run, in signed texts: each instruction and each answer, read and verified once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from shared.audit.records import RunFiles
from shared.audit.verdict import Check
from shared.errors import InstructionError, SignatureError
from shared.messages import Answer, Instruction, Kind, read_answer, read_instruction
from shared.signing import PublicKey

_NAME = re.compile(r"(?P<site>[a-z0-9][a-z0-9_.-]{0,62})\.(?P<kind>prepare|train|evaluate)\.answer\.json")


class Violation(Exception):
    """What contradicts what."""


class Absent(Exception):
    """What is not there to be looked at."""


def checked(name: str, look: Callable[[], str]) -> Check:
    """`look` returns what a proof rests on, or raises Violation or Absent."""
    try:
        return Check(name, "proven", look())
    except Violation as problem:
        return Check(name, "violated", str(problem))
    except Absent as problem:
        return Check(name, "not checkable", str(problem))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One instruction and its answer, as the record places them."""

    kind: Kind
    round: int
    site: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.site}, {self.kind}, round {self.round}"

    @property
    def place(self) -> str:
        """Where its texts lie in the run's folder, as people say it."""
        return "the final evaluation" if self.kind == "evaluate" else f"round {int(self.folder.parent.name)}"

    def text(self, what: str) -> str:
        """Raises Absent."""
        path = self.folder / f"{self.site}.{self.kind}.{what}.json"
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            raise Absent(f"{path.parent.name}/{path.name} of round {self.round} is not there") from None


class SignedTexts:
    """Of one run. Keys are those that run.json names: whose they are is asked in `shared.audit.signatures`."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self._instructions: dict[Exchange, tuple[Instruction, str]] = {}
        self._answers: dict[Exchange, Answer] = {}

    def on_record(self) -> Iterator[Exchange]:
        """Everything that a record rests on."""
        files = self.files
        for record in files.rounds:
            folder = files.place(record.round) / "signed"
            for site in sorted(record.prepared):
                yield Exchange("prepare", 0, site, folder)
            for site in sorted(record.trained):
                yield Exchange("train", record.round, site, folder)
        if files.final is not None and files.rounds:
            for site in sorted(files.final.sites):
                yield Exchange("evaluate", files.rounds[-1].round, site, self._evaluation)

    def kept(self) -> list[Exchange]:
        """Every answer that lies in the folders: also what was prepared again when a run went on, which no record names."""
        found: dict[Exchange, None] = dict.fromkeys(self.on_record())
        folders = [(one.round, self.files.place(one.round) / "signed") for one in self.files.rounds]
        last = self.files.rounds[-1].round if self.files.rounds else 0
        for number, folder in [*folders, (last, self._evaluation)]:
            for path in sorted(folder.glob("*.answer.json")):
                if (named := _NAME.fullmatch(path.name)) is not None:
                    kind = cast(Kind, named["kind"])
                    found[Exchange(kind, 0 if kind == "prepare" else number, named["site"], folder)] = None
        return list(found)

    def instruction(self, exchange: Exchange) -> tuple[Instruction, str]:
        """And its digest. Raises Violation, Absent."""
        if exchange not in self._instructions:
            key = self.files.run.coordinator_key
            if key is None:
                raise Absent("run.json names no key of the coordinator")
            try:
                self._instructions[exchange] = read_instruction(exchange.text("instruction"), PublicKey.read(key))
            except (SignatureError, InstructionError) as problem:
                raise Violation(f"{exchange}: the instruction: {problem}") from None
        return self._instructions[exchange]

    def answer(self, exchange: Exchange) -> Answer:
        """To that instruction, by that site. Raises Violation, Absent."""
        if exchange not in self._answers:
            key = self.files.run.site_keys.get(exchange.site)
            if key is None:
                raise Absent(f"run.json names no key of {exchange.site}")
            try:
                answer = read_answer(exchange.text("answer"), PublicKey.read(key))
            except (SignatureError, InstructionError) as problem:
                raise Violation(f"{exchange}: the answer: {problem}") from None
            if answer.hello.site != exchange.site or answer.round != exchange.round:
                raise Violation(f"{exchange}: the answer is of {answer.hello.site}, round {answer.round}")
            if answer.instruction != self.instruction(exchange)[1]:
                raise Violation(f"{exchange}: the answer is to another instruction")
            self._answers[exchange] = answer
        return self._answers[exchange]

    @property
    def _evaluation(self) -> Path:
        return self.files.path / "evaluation-signed"

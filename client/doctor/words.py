"""A check's name and title, from which its findings are made."""

from __future__ import annotations

from typing import NamedTuple

from client.doctor.findings import Finding


class Words(NamedTuple):
    """`name` is for programs and stays as it is, `title` is for people."""

    name: str
    title: str

    def ok(self, found: str) -> Finding:
        return Finding(name=self.name, title=self.title, outcome="ok", found=found)

    def warning(self, found: str, remedy: str) -> Finding:
        return Finding(name=self.name, title=self.title, outcome="warning", found=found, remedy=remedy)

    def fault(self, found: str, remedy: str) -> Finding:
        return Finding(name=self.name, title=self.title, outcome="fault", found=found, remedy=remedy)

    def skipped(self, found: str) -> Finding:
        return Finding(name=self.name, title=self.title, outcome="skipped", found=found)

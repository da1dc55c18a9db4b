"""Documents about a run for people outside of it: a model card and a privacy statement, from the run folder alone."""

from __future__ import annotations

from pathlib import Path

from server.documents.model_card import model_card
from server.documents.privacy_statement import privacy_statement
from server.documents.rendering import html, markdown
from server.report import build_report
from server.run_folder import RunFolder, write_atomic
from shared.errors import InputError, StorageError


def write_documents(folder: RunFolder, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write both, as Markdown and as HTML, into `out`, which is made where it is missing; returns the four paths.

    Raises InputError where one is there already, since people may have filled it in, unless `overwrite`; RunFolderError, StudyError,
    StorageError.
    """
    report = build_report(folder)
    documents = [model_card(report), privacy_statement(report, folder.study())]
    texts = {
        out / f"{one.name}.{ending}": render(one)
        for one in documents
        for ending, render in (("md", markdown), ("html", html))
    }
    there = [path.name for path in texts if path.exists()]
    if there and not overwrite:
        raise InputError(
            f"{out}: {', '.join(there)} is there already, and somebody may have filled it in; choose another folder, or give --overwrite"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StorageError(f"{out}: can't be made: {problem.strerror or problem}") from None
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return list(texts)

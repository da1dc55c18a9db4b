"""A study's folds as studies of their own, for cross-validation: they differ in the fold that is tested, and in their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.study_writing import write_study
from shared.errors import InputError, StudyError
from shared.study import load_study
from shared.yaml_source import read_yaml


def write_folds(study: Path, *, of: int, out: Path) -> dict[Path, str]:
    """`out`/NAME-fold1.yaml and so on; their digests by file: all of them, or none. Comments of the file are not kept.

    Raises StudyError, StorageError, and InputError where the study is a fold already, a file is there, or starting weights would be
    looked for elsewhere than they lie.
    """
    data: dict[str, Any] = dict(read_yaml(study, StudyError).data)
    whole = load_study(study)
    if whole.data.split.folds is not None:
        raise InputError(f"{study}: data.split.folds is there already; give the study without it")
    if whole.weight_files and out.resolve() != study.resolve().parent:
        raise InputError(
            f"{out}: expected the folder of {study}, since a study names files of weights relative to itself"
        )
    files = [out / f"{whole.name}-fold{test + 1}.yaml" for test in range(of)]
    if there := [str(path) for path in files if path.exists()]:
        raise InputError(f"{', '.join(there)}: already there; remove it, or choose another folder")
    digests: dict[Path, str] = {}
    try:
        for test, path in enumerate(files):
            divided = dict(data.get("data") or {})
            divided["split"] = {**(divided.get("split") or {}), "folds": {"of": of, "test": test}}
            fold = {**data, "name": f"{whole.name}-fold{test + 1}", "data": divided}
            digests[path] = write_study(path, fold).digest()
    except Exception:
        for path in digests:
            path.unlink(missing_ok=True)
        raise
    return digests

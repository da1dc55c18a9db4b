"""Offering a study to the hospitals: the signed publication, and how often it has been run.

studies/DIGEST.json       the publication, signed
studies/DIGEST.runs.json  the runs that were launched of it
studies/DIGEST.weights/   the weights files that the study names, under the names that it gives them
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from server.home import Home
from server.run_folder import write_atomic
from server.starting_model import Built, build_starting_model, starting_point
from shared.documents import Publication, read_document, write_document
from shared.errors import InputError, StorageError, WeightsError
from shared.release import Release
from shared.study import Study, load_study, study_from_data

#: Fewest digits of a study's digest that may stand for all of it.
SHORTEST_PREFIX = 6
DEFAULT_DAYS = 365


@dataclass(frozen=True, slots=True)
class Published:
    """A publication, the files that hospitals need of it, and the publication of the same study that it takes the place of."""

    publication: Publication
    files: tuple[Path, ...]
    replaced: Publication | None
    built: Built


def publish(home: Home, study_path: Path, out: Path, *, runs: int = 1, expires: date | None = None) -> Published:
    """Sign the study with all that an approval binds: its digest, the starting model, this release, number of runs, last day.

    Written to the coordinator's folder and to `out`; files of weights that the study names are copied beside both.
    Raises StudyError, WeightsError, InputError (a last day that has passed), StorageError.
    """
    record, key = home.record(), home.signing_key()
    last = expires if expires is not None else today() + timedelta(days=DEFAULT_DAYS)
    if last < today():
        raise InputError(f"--expires: {last} has passed already; choose a later day")
    study = load_study(study_path)
    built = build_starting_model(study, weights_root=study_path.parent)
    publication = Publication(
        federation=record.federation, coordinator_key=str(key.public), study=study.to_data(), study_digest=study.digest(),
        starting_point=starting_point(built.model, study.federation.wire), runs=runs, expires=last.isoformat(),
        created=datetime.now(UTC).isoformat(timespec="seconds"), release=Release.installed(),
    )  # fmt: skip
    before = _published(home, study.digest())
    files = [out]
    for place, weights in study.weight_files.items():
        source, name = study_path.parent / weights.file, weights.file
        _copy_below(source, weights_of(home, study.digest()), name, place)
        files.append(_copy_below(source, out.parent, name, place))
    write_document(out, publication, key)
    write_document(_path(home, study.digest()), publication, key)  # last: what is in the folder can be launched
    return Published(publication, tuple(files), before, built)


def publications(home: Home) -> dict[str, Publication]:
    """Every published study by digest. Raises DocumentError where a file was changed."""
    return {
        path.stem: read_document(path, Publication, home.signing_key().public)
        for path in sorted((home.path / "studies").glob("*.json"))
        if re.fullmatch(r"[0-9a-f]{64}", path.stem)
    }


def find_publication(home: Home, wanted: str) -> Publication:
    """By the first digits of the digest, or by a study file. Raises InputError, StudyError, DocumentError."""
    known = publications(home)
    if Path(wanted).suffix in (".yaml", ".yml"):
        study = load_study(Path(wanted))
        if study.digest() not in known:
            raise InputError(
                f"{wanted}: this study (digest {study.digest()[:16]}...) is not published; "
                f"publish it with `consilium-server publish {home.path} {wanted}`"
            )
        return known[study.digest()]
    digits = wanted.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", digits):
        raise InputError(
            f"'{wanted}': expected a study file (.yaml), or at least the first {SHORTEST_PREFIX} digits of a published digest"
        )
    found = [digest for digest in known if digest.startswith(digits)]
    if len(found) != 1:
        told = ", ".join(f"{digest[:12]} ({known[digest].study['name']})" for digest in found or known) or "none"
        raise InputError(f"'{wanted}' is the start of {len(found)} published digests; published: {told}")
    return known[found[0]]


def study_of(publication: Publication) -> Study:
    """The study inside. Raises StudyError, InputError where this release reads another study out of it than was published."""
    study = study_from_data(publication.study)
    if study.digest() != publication.study_digest:
        raise InputError(
            f"study {study.name}: published with another release, in which its digest was {publication.study_digest[:16]}...; "
            "publish it again"
        )
    return study


def weights_of(home: Home, digest: str) -> Path:
    """The folder in which the study's relative weights file lies."""
    return home.path / "studies" / f"{digest}.weights"


def launched(home: Home, digest: str) -> list[str]:
    """Runs that were launched of this publication, by folder name and moment. Raises InputError where the file is damaged."""
    path = _launches(home, digest)
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as problem:
        raise InputError(f"{path}: can't be read: {problem}") from None


def count_launch(home: Home, digest: str, run: str) -> None:
    """Note a launch, before it happens. Raises StorageError."""
    _write_launches(home, digest, [*launched(home, digest), run])


def take_back_launch(home: Home, digest: str, run: str) -> None:
    """The launch did not come to pass."""
    _write_launches(home, digest, [one for one in launched(home, digest) if one != run])


def today() -> date:
    """Days are counted in UTC, so that both sides agree on the last one."""
    return datetime.now(UTC).date()


def _write_launches(home: Home, digest: str, names: list[str]) -> None:
    write_atomic(_launches(home, digest), json.dumps(names, indent=1).encode() + b"\n")


def _launches(home: Home, digest: str) -> Path:
    return home.path / "studies" / f"{digest}.runs.json"


def _path(home: Home, digest: str) -> Path:
    return home.path / "studies" / f"{digest}.json"


def _published(home: Home, digest: str) -> Publication | None:
    path = _path(home, digest)
    return read_document(path, Publication, home.signing_key().public) if path.exists() else None


def _copy_below(source: Path, folder: Path, name: str, key: str) -> Path:
    """Copy the weights to `folder`/`name`, which must lie in that folder. Raises WeightsError, StorageError."""
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise WeightsError(f"{key}: expected a file beside the study or below it, but got '{name}'")
    if source.resolve() == target.resolve():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as problem:
        raise StorageError(f"{target}: can't be written: {problem.strerror or problem}") from None
    return target

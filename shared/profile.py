"""The schema of a site profile: WHO trains. One folder a hospital in `sites/`, with `profile.yaml`. It is never sent.

`${NAME}` in `data.root` and `cache` is replaced by the environment variable NAME; a relative path is relative to the profile's folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from shared.errors import ProfileError
from shared.exact import WrittenExact, WrittenShare
from shared.ledger.entries import Lifetime
from shared.schema import Name, Strict
from shared.yaml_source import read_yaml, validate

#: Groups of figures that a hospital can keep to itself.
Output = Literal["network", "svm", "baseline", "gain", "classes", "histogram", "descriptors", "shared_images"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


#: `trains`: its train part changes the model; `external_test`: it never trains, and all its patients test the final model.
Role = Literal["trains", "external_test"]


class ArtificialPart(Strict):
    """One of several parts that a published set is cut into, so that it can stand for several hospitals, which it does not come from.

    A patient is in part `index` where a hash of `seed` and the patient's id, modulo `of`, is `index`: parts of one `of` and `seed` share
    no patient, however many sites there are.
    """

    index: int = Field(ge=0, description="from 0")
    of: int = Field(ge=2, description="number of parts")
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> ArtificialPart:
        if self.index >= self.of:
            raise ValueError(f"index counts from 0, so it must be below of ({self.of}), but is {self.index}")
        return self


class SiteData(Strict):
    """Where the images lie and how their folder is laid out."""

    layout: Name = Field(description="name of the adapter, e.g. dicom_folder; all are in docs/layouts.md")
    root: str
    synthetic: bool = Field(description="true for phantoms: every report then says so")
    patient_stand_in: str | None = Field(
        default=None,
        description="where the data has no patient id: which id stands in, e.g. lesion_id; every report repeats it",
    )
    label_field: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]+$")] | None = Field(
        default=None,
        description="layout dicom_folder without a labels.csv: keyword of the header field that holds the label, e.g. SeriesDescription",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="the hospital's own labels, each with the label of docs/layouts.md or of the study that it means; case does not matter",
    )
    part: ArtificialPart | None = Field(
        default=None,
        description="only this part of the patients, where one published set stands for several sites: every report says so",
    )
    unreadable: Literal["stop", "skip"] = Field(default="stop", description="what to do at an image that can't be read")

    @field_validator("labels")
    @classmethod
    def _one_meaning(cls, value: dict[str, str]) -> dict[str, str]:
        seen: dict[str, str] = {}
        for own, label in value.items():
            if not own.strip() or not label.strip():
                raise ValueError(f"a label is empty: '{own}' means '{label}'")
            if seen.setdefault(own.strip().lower(), label) != label:
                raise ValueError(f"'{own}' means two labels, {seen[own.strip().lower()]} and {label}")
        return value


class LifetimeBudget(Strict):
    """What a patient may be charged in all, over every private run, composed by RDP. Fixed for life: it can be lowered, never raised."""

    epsilon: WrittenExact
    delta: WrittenShare = Field(description="well below 1 / patients")
    unbounded: Literal["refuse", "allow"] = Field(
        default="refuse", description="what to do with a study without differential privacy, whose cost has no bound"
    )

    def entry(self) -> Lifetime:
        """As the ledger fixes it."""
        return Lifetime(epsilon=self.epsilon, delta=self.delta, unbounded=self.unbounded)


class Policy(Strict):
    """What the hospital allows, whatever a study asks."""

    minimum_patients: int = Field(default=20, ge=1, description="a study that reaches fewer patients is refused")
    minimum_cell: int = Field(
        default=5,
        ge=1,
        description="smallest histogram cell that may leave, and fewest images of a class whose masks' figures may; the larger of this "
        "and the study's counts",
    )
    maximum_rounds: int = Field(default=1000, ge=1)
    maximum_update_norm: Annotated[float, Field(gt=0)] = Field(
        default=1e6, description="L2 norm above which an update does not leave"
    )
    maximum_round_s: Annotated[float, Field(gt=0)] = Field(
        default=86_400, description="training of one round that lasts longer is ended, and nothing of it leaves"
    )
    maximum_device_memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="GB (10^9 bytes) of a GPU's memory that a study may take; without effect on a CPU"
    )
    lifetime: LifetimeBudget | None = Field(
        default=None, description="None: private studies are refused, since nothing would limit what they add up to"
    )
    allowed_outputs: list[Output] = Field(
        default_factory=lambda: list(get_args(Output)),
        description="which figures may leave besides counts: `network` and `svm` (figures of each head; without `network` no evaluation "
        "leaves), `baseline` (the round-0 model's), `gain` (final minus round 0), `classes` (figures by class), `histogram` (of scores), "
        "`descriptors` (figures of lesion descriptors), "
        "`shared_images` (tags by which images that two hospitals both hold are counted)",
    )


class Profile(Strict):
    """One hospital."""

    format: Literal["consilium/profile/1"] = Field(alias="schema")
    site: Name
    title: str = Field(max_length=200)
    role: Role = Field(
        default="trains",
        description="external_test: never trains; all its patients that the study selects test the final model, and the report shows them "
        "apart",
    )
    data: SiteData
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: int | None = Field(default=None, ge=1, description="CPU threads; None shares the machine's cores evenly")
    cache: str | None = Field(default=None, description="folder of the image cache; None is the site's state folder")
    policy: Policy = Policy()


def profile_path(argument: Path) -> Path:
    """The profile file meant by a folder or file argument."""
    return argument / "profile.yaml" if argument.is_dir() else argument


def load_profile(argument: Path) -> Profile:
    """Read a profile (a folder holding profile.yaml, or the file). Paths come back absolute. Raises ProfileError."""
    path = profile_path(argument)
    profile = validate(read_yaml(path, ProfileError), Profile, ProfileError)
    root = _expand(profile.data.root, path, "data.root")
    changes: dict[str, Any] = {"data": profile.data.model_copy(update={"root": str(root)})}
    if profile.cache is not None:
        changes["cache"] = str(_expand(profile.cache, path, "cache"))
    return profile.model_copy(update=changes)


def _expand(text: str, path: Path, key: str) -> Path:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ProfileError(f"{path}: {key} is '{text}', but the environment variable {name} is not set")
        return os.environ[name]

    folder = Path(_VARIABLE.sub(value, text)).expanduser()
    return folder if folder.is_absolute() else (path.parent / folder).resolve()

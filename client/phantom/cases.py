"""Who is in the phantom: patients, views and findings, before any pixel is drawn.

The plan alone decides labels and descriptors. Everything that a classifier could use as a shortcut (size of the region,
amount and contrast of calcification, breast density, place) is drawn here or in `views` without looking at the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from client.phantom.lexicon import (
    AMBIGUOUS_SHARE,
    BENIGN_DISTRIBUTION,
    BENIGN_MORPHOLOGY,
    SUSPICIOUS_DISTRIBUTION,
    SUSPICIOUS_MORPHOLOGY,
    Distribution,
    Morphology,
)

TEST_SHARE = 0.2
"""Share of patients in the published test table (Lee et al. 2017: about 20 %)."""


class Side(StrEnum):
    LEFT = "LEFT"
    RIGHT = "RIGHT"


class Projection(StrEnum):
    CC = "CC"
    MLO = "MLO"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One abnormality in one view.

    `diameter` is the mean diameter of the region of interest in pixels, `load` the share of the region covered by
    calcification, `contrast` the brightest calcification above its surroundings on the signal scale [0, 1].
    """

    abnormality: int
    malignant: bool
    morphology: Morphology
    distribution: Distribution
    calc_type: str
    calc_distribution: str
    pathology: str
    assessment: int
    subtlety: int
    diameter: float
    aspect: float
    load: float
    contrast: float


@dataclass(frozen=True, kw_only=True)
class View:
    """One mammogram: its side, projection and findings (at least one, as in CBIS-DDSM)."""

    side: Side
    projection: Projection
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One invented patient. `density` is the BI-RADS breast composition, 1 (fatty) to 4 (extremely dense)."""

    patient_id: str
    malignant: bool
    test: bool
    density: int
    views: tuple[View, ...]
    stream: np.random.SeedSequence
    """Source of the randomness of this patient's images, independent of every other patient's."""

    @property
    def part(self) -> str:
        """`Training` or `Test`, as the published folder names spell it."""
        return "Test" if self.test else "Training"


def plan_cases(*, patients: int, prevalence: float, sequence: np.random.SeedSequence) -> tuple[Case, ...]:
    """Draw `patients` cases, of which `round(patients * prevalence)` have a malignant main finding.

    Test patients are `TEST_SHARE` of each pathology, rounded, so that both parts hold both whenever the numbers allow.
    """
    order_stream, *case_streams = sequence.spawn(patients + 1)
    rng = np.random.default_rng(order_stream)
    malignant = rng.permutation(patients) < round(patients * prevalence)
    test = np.zeros(patients, dtype=bool)
    for label in (True, False):
        members = np.flatnonzero(malignant == label)
        test[rng.permutation(members)[: round(len(members) * TEST_SHARE)]] = True
    numbers = np.cumsum(rng.integers(1, 9, size=patients))
    return tuple(
        _case(f"P_{numbers[i]:05d}", bool(malignant[i]), bool(test[i]), case_streams[i]) for i in range(patients)
    )


def _case(patient_id: str, malignant: bool, test: bool, stream: np.random.SeedSequence) -> Case:
    plan_stream, image_stream = stream.spawn(2)
    rng = np.random.default_rng(plan_stream)
    sides = list(rng.permutation(list(Side)))[: 2 if rng.random() < 0.2 else 1]
    views: list[View] = []
    for position, side in enumerate(sides):
        count = int(rng.choice((1, 2, 3), p=(0.72, 0.21, 0.07)))
        abnormalities = []
        for number in range(1, count + 1):
            is_main = position == 0 and number == 1
            abnormalities.append((number, malignant if is_main else malignant and bool(rng.random() < 0.8)))
        both = rng.random() < 0.85
        projections = list(Projection) if both else [Projection(rng.choice(list(Projection)))]
        drawn = [_descriptors(label, rng) for _, label in abnormalities]
        for projection in projections:
            findings = tuple(
                _finding(number, label, descriptors, rng)
                for (number, label), descriptors in zip(abnormalities, drawn, strict=True)
            )
            views.append(View(side=Side(side), projection=projection, findings=findings))
    density = int(rng.choice((1, 2, 3, 4), p=(0.12, 0.34, 0.34, 0.20)))
    return Case(
        patient_id=patient_id, malignant=malignant, test=test, density=density, views=tuple(views), stream=image_stream
    )


@dataclass(frozen=True)
class _Descriptors:
    morphology: Morphology
    distribution: Distribution
    ambiguous: bool


def _descriptors(malignant: bool, rng: np.random.Generator) -> _Descriptors:
    """Descriptors of one abnormality, the same in both projections."""
    suspicious_shape = suspicious_place = malignant
    ambiguous = bool(rng.random() < AMBIGUOUS_SHARE)
    if ambiguous:
        kind = int(rng.integers(3))
        suspicious_shape = malignant if kind == 0 else not malignant
        suspicious_place = malignant if kind == 1 else not malignant
    shapes = SUSPICIOUS_MORPHOLOGY if suspicious_shape else BENIGN_MORPHOLOGY
    places = SUSPICIOUS_DISTRIBUTION if suspicious_place else BENIGN_DISTRIBUTION
    return _Descriptors(
        morphology=shapes[int(rng.integers(len(shapes)))],
        distribution=places[int(rng.integers(len(places)))],
        ambiguous=ambiguous,
    )


def _finding(number: int, malignant: bool, descriptors: _Descriptors, rng: np.random.Generator) -> Finding:
    recalled = malignant or descriptors.ambiguous or bool(rng.random() < 0.5)
    if malignant:
        pathology, assessment = "MALIGNANT", int(rng.choice((4, 5, 3), p=(0.68, 0.26, 0.06)))
    elif recalled:
        pathology, assessment = "BENIGN", int(rng.choice((4, 3, 2, 0), p=(0.66, 0.18, 0.12, 0.04)))
    else:
        pathology, assessment = "BENIGN_WITHOUT_CALLBACK", 2
    contrast = float(rng.uniform(0.22, 0.40))
    named = str(descriptors.morphology)
    if descriptors.ambiguous and descriptors.morphology is not Morphology.PUNCTATE and rng.random() < 0.5:
        named = f"{Morphology.PUNCTATE}-{named}"
    unnamed_place = not recalled and bool(rng.random() < 0.25)
    return Finding(
        abnormality=number,
        malignant=malignant,
        morphology=descriptors.morphology,
        distribution=descriptors.distribution,
        calc_type=named,
        calc_distribution="N/A" if unnamed_place else str(descriptors.distribution),
        pathology=pathology,
        assessment=assessment,
        subtlety=int(np.clip(round((contrast - 0.22) / 0.18 * 4 + 1 + rng.normal(0, 0.7)), 1, 5)),
        diameter=float(rng.uniform(66, 128)),
        aspect=float(rng.uniform(0.8, 1.25)),
        load=float(rng.uniform(0.05, 0.09)),
        contrast=contrast,
    )

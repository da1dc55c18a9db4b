"""Can the phantom's labels be told without looking at morphology or distribution? They must not.

Writes one phantom site for each scanner, reads every region of interest back by its mask box, and trains classifiers on
statistics that ignore where a pixel lies (intensity) or that ignore the pixels (geometry). Patients are never split
between folds. An AUC above 0.7 is a shortcut: a network could score well on the phantom without having learnt anything.

    python benchmarks/phantom_shortcuts.py --patients 100 --seed 7
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from client.phantom import SCANNERS, write_phantom

LIMIT = 0.7


@dataclass(frozen=True)
class Region:
    """One finding: `crop` and `mask` `(h, w)`, crop with values in [0, 1], bright is dense."""

    crop: NDArray[np.float64]
    mask: NDArray[np.bool_]
    malignant: bool
    patient: str
    scanner: str


def read_regions(root: Path, scanner: str) -> Iterator[Region]:
    """Every finding of a phantom site, from tables and DICOM files alone."""
    for table in sorted(root.glob("calc_case_description_*.csv")):
        with table.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                image = _pixels(root, row["image file path"])[0]
                masks = [p for p in _pixels(root, row["ROI mask file path"]) if np.unique(p).size <= 2]
                mask = masks[0][: image.shape[0], : image.shape[1]] > 0
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                patient = f"{scanner}/{row['patient_id']}"
                yield Region(image[box], mask[box], row["pathology"] == "MALIGNANT", patient, scanner)


def _pixels(root: Path, cell: str) -> list[NDArray[np.float64]]:
    images = []
    for file in sorted((root / "CBIS-DDSM" / cell.strip().split("/")[0]).rglob("*.dcm")):
        header = pydicom.dcmread(file)
        values = header.pixel_array / (2.0**header.BitsStored - 1)
        images.append(1 - values if header.PhotometricInterpretation == "MONOCHROME1" else values)
    return images


def intensity_statistics(crop: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moments, percentiles, extremes and two histograms of a crop: everything that ignores the place of a pixel."""
    values = crop.ravel()
    spread = values.std() + 1e-9
    standard = (values - values.mean()) / spread
    return np.array(
        [
            values.mean(),
            spread,
            (standard**3).mean(),
            (standard**4).mean(),
            *np.percentile(values, [0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 100]),
            *np.histogram(values, 16, (0, 1), density=True)[0],
            *np.histogram(standard, 16, (-3, 6), density=True)[0],
        ]
    )


def geometry_statistics(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Height, width, aspect and area of a region, and how much of its box it fills."""
    height, width = mask.shape
    return np.array([height, width, height / width, mask.sum(), mask.mean()])


def classifiers(seed: int = 0) -> dict[str, ClassifierMixin]:
    """The classifiers by the name that the table gives them."""
    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        "RBF SVM": make_pipeline(StandardScaler(), SVC()),
        "random forest": RandomForestClassifier(200, min_samples_leaf=3, random_state=seed),
    }


def grouped_auc(
    classifier: ClassifierMixin,
    features: NDArray[np.float64],
    malignant: NDArray[np.bool_],
    patients: Sequence[str],
    seed: int = 0,
) -> float:
    """Out-of-fold AUC over five folds that never split a patient. `features` is `(N, F)`."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    method = "decision_function" if hasattr(classifier, "decision_function") else "predict_proba"
    scores = cross_val_predict(classifier, features, malignant, groups=list(patients), cv=folds, method=method)
    return float(roc_auc_score(malignant, scores if scores.ndim == 1 else scores[:, 1]))


def main() -> int:
    """Print the table; exit 1 if a figure reaches the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--patients", type=int, default=100, help="patients for each scanner")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    regions: list[Region] = []
    with tempfile.TemporaryDirectory(prefix="phantom-") as folder:
        for name in SCANNERS:
            root, start = Path(folder) / name, time.perf_counter()
            write_phantom(root, patients=options.patients, seed=options.seed, scanner=name, workers=options.workers)
            seconds = (time.perf_counter() - start) / options.patients
            regions.extend(read_regions(root, name))
            print(f"{name}: {seconds:.3f} s to write a patient")
    groups = {"all": regions, **{name: [r for r in regions if r.scanner == name] for name in SCANNERS}}
    worst = 0.0
    print(f"\n{'features':10} {'classifier':20}" + "".join(f"{f'{g} ({len(m)})':>16}" for g, m in groups.items()))
    for kind in ("intensity", "geometry"):
        for name, classifier in classifiers(options.seed).items():
            aucs = []
            for members in groups.values():
                rows = [intensity_statistics(r.crop) if kind == "intensity" else geometry_statistics(r.mask)
                        for r in members]  # fmt: skip
                malignant = np.array([r.malignant for r in members])
                aucs.append(grouped_auc(classifier, np.array(rows), malignant, [r.patient for r in members]))
            worst = max(worst, *aucs)
            print(f"{kind:10} {name:20}" + "".join(f"{auc:16.3f}" for auc in aucs))
    print(f"\nworst {worst:.3f}, limit {LIMIT}: {'passed' if worst < LIMIT else 'FAILED'}")
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

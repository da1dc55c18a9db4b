"""Recompute a HAM10000 run's figures from the saved model and the hospitals' files, by other code than the run's own.

    FEDERATION_DATA=/path python -m benchmarks.recompute runs/ham10000

Own code, or another library's: reading the tables and images (pandas, Pillow), preparing them, running the network, the
SVM (scikit-learn's pipeline with the C and gamma that the run says it chose), every figure (scikit-learn), pooling, and a
bootstrap. Taken from the project: the study's schema, `client.data.selection` (which lesion belongs to which part; that no
lesion is in two parts is checked again here) and `shared.models.build_network` (the architecture; every weight comes from
the files). Nothing of client.work, client.evaluation, client.svm, client.training, client.data.batches, shared.imaging,
shared.metrics or server.report is used.

How close it must be:

- Counts: equal.
- Figures: within 0.001. Not nought, because networks run in bfloat16 where the machine multiplies it, and another processor
  adds in another order: two images of nearly the same score may change places, which moves an AUC by some
  hundred-thousandths. It is less than one image: one that changes sides moves the accuracy of 477 images by 0.002, and that
  is an error. On the machine of the run the differences are those of a floating-point sum (1e-16).
- Ends of intervals: within 15 % of the interval's width. Both are bootstraps, of a thousand and two thousand draws with other
  random numbers; their difference has a standard deviation of about 3 % of the width. Only of hospitals with at least 20 test
  images of each of two classes: with fewer, the draws take few values and an end may jump.

Not recomputed: figures of masks (segmentation studies), training itself, the intervals of pooled figures and gains, and the SVM's
calibrated probabilities. For two classes these rank as the decision values do, of which the AUC is taken; for more the SVM's AUC is left
out.

Exit status 0 where everything agrees, 1 where something does not, 2 where the run or the data can't be read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from scipy.stats import rankdata
from sklearn import metrics
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from client.data.records import Holding, Record
from client.data.selection import choose
from shared.models import build_network
from shared.study import Study, study_from_data
from shared.study_metadata import Category

TOLERANCE = 0.001
INTERVAL_TOLERANCE = 0.15
INTERVAL_LEAST_IMAGES = 20
FIGURES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "auc")
BATCH = 64

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One figure twice. `allowed` is the largest difference that is not an error."""

    site: str
    model: str
    figure: str
    reported: float | None
    recomputed: float | None
    allowed: float

    @property
    def difference(self) -> float:
        """Absolute; infinite where one of the two is undefined and the other is not."""
        if self.reported is None or self.recomputed is None:
            return 0.0 if self.reported is self.recomputed else math.inf
        return abs(self.reported - self.recomputed)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.allowed


@dataclass
class Part:
    """Images of one part: prepared pixels (N, 3, S, S) of bytes, class indices (N,) and lesions (N,).

    `beside` (N, P, S, S) are the planes that the network gets behind the image's: the lesion's mask, and metadata.
    """

    pixels: Array
    beside: Array
    labels: Array
    lesions: Array


@dataclass
class Said:
    """What one head says of a test part: classes (N,), and scores (N,) or (N, K) that rank the images (None: not recomputed)."""

    labels: Array
    predicted: Array
    scores: Array | None
    lesions: Array


@dataclass
class Hospital:
    """What was recomputed of one hospital, by model: 'network', 'svm', 'svm_paper', and each at round 0."""

    parts: dict[str, Part]
    said: dict[str, Said] = field(default_factory=dict)


def read_hospital(root: Path, study: Study) -> dict[str, Part]:
    """The parts of a hospital's holding, in the order of the image ids."""
    table = pd.read_csv(root / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)
    files = {path.stem: path for path in root.rglob("*.jpg")}
    masks = {path.stem.removesuffix("_segmentation"): path for path in root.rglob("*_segmentation.png")}
    records = tuple(
        Record(
            key=row["image_id"],
            image=files[row["image_id"]],
            label=row["dx"],
            patient=row["lesion_id"],
            masks=(masks[row["image_id"]],) if row["image_id"] in masks else (),
        )
        for row in table.to_dict("records")
        if row["image_id"] in files
    )
    chosen = choose(study, Holding(records), minimum_patients=1)
    of_label = {label: at for at, name in enumerate(study.task.classes) for label in study.task.classes[name] or [name]}
    about = {row["image_id"]: row for row in table.to_dict("records")}
    parts: dict[str, Part] = {}
    for name, rows in chosen.parts.items():
        mine = [chosen.records[row] for row in rows]
        parts[name] = Part(
            np.stack([prepared(one.image, one.masks, study) for one in mine]),
            np.stack([planes_beside(one, study, about[one.key]) for one in mine]),
            np.array([of_label[one.label] for one in mine]),
            np.array([one.patient for one in mine]),
        )
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared_lesions = set(parts[one].lesions) & set(parts[other].lesions)
        if shared_lesions:
            raise SystemExit(f"{root.name}: {len(shared_lesions)} lesions are both in {one} and in {other}")
    return parts


def prepared(image: Path, masks: Sequence[Path], study: Study) -> Array:
    """One colour image as (3, S, S) in [0, 1], in steps of 1/255 as a cache of bytes keeps it.

    The whole image padded to a square with black, or the square around the lesion, moved inwards at the border; then a
    triangle filter down to S pixels.
    """
    recipe = study.preprocessing
    if recipe.channels != 3 or recipe.intensity != "bit_depth":
        raise SystemExit("this script knows studies with 3 channels and intensity: bit_depth")
    if recipe.clahe is not None or recipe.denoise != "none" or recipe.layer_normalise is not None or recipe.remove:
        raise SystemExit("this script knows no CLAHE, no denoising, no removal and no layer normalisation of the input")
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    top, left, side = 0, 0, max(width, height)
    if recipe.region == "whole":
        top, left = -((side - height) // 2), -((side - width) // 2)
    else:
        marked = np.argwhere(np.asarray(Image.open(masks[0]).convert("L")) > 0)
        (first_row, first_column), (last_row, last_column) = marked.min(0), marked.max(0) + 1
        longer = int(max(last_row - first_row, last_column - first_column))
        side = round(longer * (1 + 2 * recipe.margin))
        top = _inside(int(first_row + last_row), side, height)
        left = _inside(int(first_column + last_column), side, width)
    values = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / np.float32(255)
    planes = [_smaller(values[..., c], recipe.size) for c in range(3)]
    return np.rint(np.clip(np.stack(planes), 0, 1) * 255).astype(np.uint8)


def _smaller(plane: Array, size: int) -> Array:
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def planes_beside(record: Record, study: Study, row: Mapping[str, str]) -> Array:
    """(P, S, S): the hospital's own mask of the whole image, and the metadata of HAM10000's table, written one after the other."""
    size = study.preprocessing.size
    planes: list[Array] = []
    if study.preprocessing.mask is not None:
        if study.preprocessing.region != "whole" or study.preprocessing.mask.source != "annotated":
            raise SystemExit("this script knows the hospitals' own masks of whole images only")
        marked = np.asarray(Image.open(record.masks[0]).convert("L")) > 0
        side = max(marked.shape)
        square = np.zeros((side, side), np.float32)
        top, left = (side - marked.shape[0]) // 2, (side - marked.shape[1]) // 2
        square[top : top + marked.shape[0], left : left + marked.shape[1]] = marked
        planes.append((_smaller(square, size) >= 0.5).astype(np.float32))
    told: list[float] = []
    for one in study.metadata:
        cell = row[one.name].strip().lower()
        if isinstance(one, Category):
            told += [1.0 if cell == value.lower() else 0.0 for value in one.values]
        else:
            told += (
                [0.0, 0.0]
                if cell == ""
                else [float(np.clip((float(cell) - one.low) / (one.high - one.low), 0, 1)), 1.0]
            )
    if told:
        plane = np.zeros(size * size, np.float32)
        plane[: len(told)] = told
        planes.append(plane.reshape(size, size))
    return np.stack(planes) if planes else np.empty((0, size, size), np.float32)


def _inside(doubled_centre: int, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return min(max((doubled_centre - side) // 2, 0), length - side)


def network_with(weights: Path, study: Study) -> torch.nn.Module:
    """The study's architecture with the weights of a file: each of its tensors is set from there."""
    network = build_network(study)
    state = {name: torch.from_numpy(array.copy()) for name, array in load_file(weights).items()}
    missing, unknown = network.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    if left or unknown:
        raise SystemExit(f"{weights}: does not fit the study's network: {', '.join([*left, *unknown][:5])}")
    return network.eval()


def run_network(
    network: torch.nn.Module, part: Part, study: Study, *, bf16: bool, channels_last: bool
) -> tuple[Array, Array]:
    """Features (N, D) before the last linear layer, and logits (N, outputs)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    caught: list[torch.Tensor] = []
    handle = network.fc.register_forward_hook(lambda _module, inputs, _output: caught.append(inputs[0].float()))
    constants = study.preprocessing.normalise
    logits: list[torch.Tensor] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for start in range(0, len(part.pixels), BATCH):
            images = torch.from_numpy(part.pixels[start : start + BATCH]).float() / 255
            if constants is not None:
                images = (images - torch.tensor(constants.mean).view(-1, 1, 1)) / torch.tensor(constants.std).view(
                    -1, 1, 1
                )
            images = torch.cat((images, torch.from_numpy(part.beside[start : start + BATCH])), 1)
            logits.append(network(images.contiguous(memory_format=layout)).float())
    handle.remove()
    return torch.cat(caught).numpy(), torch.cat(logits).numpy()


def network_said(part: Part, logits: Array, positive: int) -> Said:
    """One output: the positive class above 0. More: the largest."""
    if logits.shape[1] == 1:
        predicted = np.where(logits[:, 0] >= 0, positive, 1 - positive)
        return Said(part.labels, predicted, logits[:, 0].astype(np.float64), part.lesions)
    chances = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    return Said(part.labels, logits.argmax(1), chances, part.lesions)


def svm_said(
    train: tuple[Array, Array], test: tuple[Array, Part], study: Study, C: float, gamma: float, positive: int
) -> Said:
    """scikit-learn's own pipeline, fitted on the training part's features."""
    assert study.head is not None
    weight = "balanced" if study.head.class_weight == "balanced" else None
    pipeline = make_pipeline(StandardScaler(), SVC(C=C, gamma=gamma, class_weight=weight))
    pipeline.fit(train[0].astype(np.float64), train[1])
    features, part = test[0].astype(np.float64), test[1]
    scores = None
    if len(study.task.classes) == 2:
        decision = pipeline.decision_function(features)
        scores = decision if pipeline.classes_[1] == positive else -decision
    return Said(part.labels, pipeline.predict(features), scores, part.lesions)


def figures(said: Said, positive: int, classes: int) -> dict[str, float | None]:
    """The report's figures by scikit-learn; None where one is undefined, absent where it is not recomputed."""
    truth, predicted = said.labels == positive, said.predicted == positive
    undefined = {"zero_division": np.nan}
    found: dict[str, float] = {
        "accuracy": metrics.accuracy_score(said.labels, said.predicted),
        "balanced_accuracy": np.nanmean(
            metrics.recall_score(said.labels, said.predicted, labels=np.unique(said.labels), average=None)
        ),
        "sensitivity": metrics.recall_score(truth, predicted, **undefined),
        "specificity": metrics.recall_score(~truth, ~predicted, **undefined),
        "precision": metrics.precision_score(truth, predicted, **undefined),
        "f1": metrics.f1_score(truth, predicted, **undefined),
    }
    if said.scores is not None and classes == 2:
        found["auc"] = metrics.roc_auc_score(truth, said.scores)
    elif said.scores is not None:
        there = np.unique(said.labels)
        found["auc"] = np.mean([metrics.roc_auc_score(said.labels == c, said.scores[:, c]) for c in there])
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def bootstrap(said: Said, positive: int, *, draws: int = 2000, confidence: float) -> dict[str, tuple[float, float]]:
    """Percentile intervals of accuracy, balanced accuracy and AUC (two classes), lesions drawn with replacement."""
    rng = np.random.default_rng(20181)
    lesions = [np.flatnonzero(said.lesions == name) for name in np.unique(said.lesions)]
    kept: dict[str, list[float]] = {"accuracy": [], "balanced_accuracy": [], "auc": []}
    for _ in range(draws):
        rows = np.concatenate([lesions[at] for at in rng.integers(0, len(lesions), len(lesions))])
        truth, right = said.labels[rows] == positive, said.predicted[rows] == said.labels[rows]
        kept["accuracy"].append(right.mean())
        kept["balanced_accuracy"].append((right[truth].mean() + right[~truth].mean()) / 2)
        if said.scores is not None:
            ranks, n = rankdata(said.scores[rows]), truth.sum()
            kept["auc"].append((ranks[truth].sum() - n * (n + 1) / 2) / (n * (len(rows) - n)))
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    return {name: tuple(np.quantile(values, ends)) for name, values in kept.items() if values}  # type: ignore[misc]


def recompute(run: Path, hospitals: Path) -> list[Row]:
    """Every row of the comparison. Raises OSError, ValueError and KeyError where run or data are not as expected."""
    report = json.loads((run / "report.json").read_text())
    study = study_from_data(json.loads((run / "study.json").read_text()))
    before = json.loads((run / "rounds" / "0000" / "round.json").read_text())["prepared"]
    rounds = sorted(run.glob("rounds/[0-9]*/model.safetensors"))
    final = network_with(rounds[-1] if rounds else run / "model" / "initial.safetensors", study)
    initial = network_with(run / "model" / "initial.safetensors", study)
    positive, names = study.task.positive_index, study.task.class_names
    found: dict[str, Hospital] = {}
    rows: list[Row] = []
    for site, told in report["sites"].items():
        if told["network"] is None:
            continue
        _say(f"{site}: reading images")
        hospital = found[site] = Hospital(read_hospital(hospitals / site, study))
        rows += _counts(site, hospital.parts, told["data"], len(names))
        machine = told["machine"]
        how = {"bf16": machine["precision"] == "bf16", "channels_last": machine["memory_format"] == "channels_last"}
        for network, suffix, choice in (
            (final, "", told["svm_choice"]),
            (initial, " at round 0", (before[site]["baseline"] or {}).get("svm_choice")),
        ):
            if suffix and told["baseline"] is None:
                continue
            _say(f"{site}: running the network{suffix}")
            train, test = hospital.parts["train"], hospital.parts["test"]
            features, logits = run_network(network, test, study, **how)
            hospital.said[f"network{suffix}"] = network_said(test, logits, positive)
            if study.head is None:
                continue
            seen = (run_network(network, train, study, **how)[0], train.labels)
            settings = {"svm": (choice["C"], choice["gamma"])}
            if told["svm_paper"] is not None and not suffix:
                settings["svm_paper"] = (study.head.C, study.head.gamma)
            for head, (C, gamma) in settings.items():
                hospital.said[head + suffix] = svm_said(seen, (features, test), study, C, gamma, positive)
        rows += _site_rows(site, hospital, told, report["confidence"], positive, names)
    return rows + _pooled_rows(report["pooled"], found, positive, len(names))


def _counts(site: str, parts: Mapping[str, Part], told: Mapping[str, Any], classes: int) -> list[Row]:
    rows: list[Row] = []
    for name, part in parts.items():
        said = told["parts"][name]
        rows.append(Row(site, "data", f"{name}: images", said["images"], len(part.labels), 0))
        rows.append(Row(site, "data", f"{name}: lesions", said["patients"], len(np.unique(part.lesions)), 0))
        by_class = np.bincount(part.labels, minlength=classes)
        rows += [
            Row(site, "data", f"{name}: images of class {c}", said["by_class"][c], int(by_class[c]), 0)
            for c in range(classes)
        ]
    return rows


def _site_rows(
    site: str, hospital: Hospital, told: Mapping[str, Any], confidence: float, positive: int, names: Sequence[str]
) -> list[Row]:
    rows: list[Row] = []
    mine = {model: figures(said, positive, len(names)) for model, said in hospital.said.items()}
    for model, said in hospital.said.items():
        head = model.removesuffix(" at round 0")
        reported = told[head] if head == model else told["baseline"][head]
        rows += [
            Row(site, model, name, reported[name]["value"], value, TOLERANCE) for name, value in mine[model].items()
        ]
        counts = metrics.confusion_matrix(said.labels, said.predicted, labels=range(len(names)))
        rows += [
            Row(
                site,
                model,
                f"images of {names[t]} called {names[p]}",
                reported["confusion"][t][p],
                int(counts[t, p]),
                0,
            )
            for t in range(len(names))
            for p in range(len(names))
        ]
        if head != model:
            continue
        start = mine.get(f"{model} at round 0")
        for name, gain in ((reported["gain"] or {}) if start else {}).items():
            after, earlier = mine[model].get(name), (start or {}).get(name)
            if after is not None and earlier is not None:
                rows.append(Row(site, model, f"gain in {name}", gain["value"], after - earlier, TOLERANCE))
        if len(names) == 2 and np.bincount(said.labels, minlength=2).min() >= INTERVAL_LEAST_IMAGES:
            for name, ends in bootstrap(said, positive, confidence=confidence).items():
                width = reported[name]["high"] - reported[name]["low"]
                for end, value in zip(("low", "high"), ends, strict=True):
                    allowed = INTERVAL_TOLERANCE * width
                    rows.append(Row(site, model, f"{name}, {end}", reported[name][end], float(value), allowed))
    return rows


def _pooled_rows(told: Mapping[str, Any], found: Mapping[str, Hospital], positive: int, classes: int) -> list[Row]:
    """Rates from all images together; AUC as the mean of the hospitals' own, weighted by test images."""
    rows: list[Row] = []
    for model in ("network", "svm", "svm_paper"):
        said = [hospital.said[model] for hospital in found.values() if model in hospital.said]
        if not said or told[model] is None:
            continue
        together = Said(
            np.concatenate([one.labels for one in said]),
            np.concatenate([one.predicted for one in said]),
            None,
            np.empty(0),
        )
        mine = figures(together, positive, classes)
        if all(one.scores is not None for one in said):
            own = [figures(one, positive, classes)["auc"] for one in said]
            if all(value is not None for value in own):
                mine["auc"] = float(np.average(own, weights=[len(one.labels) for one in said]))  # type: ignore[arg-type]
        rows += [
            Row("pooled", model, name, told[model][name]["value"], value, TOLERANCE) for name, value in mine.items()
        ]
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """One line a figure; what does not agree is marked."""
    lines = [f"{'hospital':<15} {'model':<21} {'figure':<34} {'reported':>10} {'recomputed':>10} {'difference':>11}"]
    for row in rows:
        reported, mine = ("-" if value is None else f"{value:.6g}" for value in (row.reported, row.recomputed))
        mark = "" if row.agrees else f"  differs (allowed {row.allowed:.2g})"
        lines.append(
            f"{row.site:<15} {row.model:<21} {row.figure:<34} {reported:>10} {mine:>10} {row.difference:>11.2g}{mark}"
        )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What docs/results.md says of it."""
    values = [row for row in rows if row.allowed == TOLERANCE]
    ends = [row for row in rows if row.allowed not in (0, TOLERANCE)]
    return {
        "counts": sum(row.allowed == 0 for row in rows),
        "figures": len(values),
        "largest_difference": max((row.difference for row in values), default=0.0),
        "tolerance": TOLERANCE,
        "interval_ends": len(ends),
        "disagreeing": sum(not row.agrees for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--hospitals", type=Path, help="folder with one folder a hospital; else ham10000 in FEDERATION_DATA"
    )
    arguments = parser.parse_args()
    data = os.environ.get("FEDERATION_DATA")
    if arguments.hospitals is None and not data:
        parser.error(
            "say where the hospitals' files are: --hospitals FOLDER, or the environment variable FEDERATION_DATA"
        )
    hospitals = arguments.hospitals or Path(str(data)) / "ham10000"
    torch.set_num_threads(1)  # as many as a site of a local run has on a small machine
    try:
        rows = recompute(arguments.run, hospitals)
    except (OSError, ValueError, KeyError) as problem:
        print(f"{arguments.run}: can't be recomputed: {problem!r}", file=sys.stderr)
        sys.exit(2)
    print(table(rows))
    told = summary(rows)
    (arguments.run / "recomputed.json").write_text(json.dumps(told, indent=1) + "\n")
    print(
        f"{told['counts']} counts, {told['figures']} figures (largest difference {told['largest_difference']:.2g}), "
        f"{told['interval_ends']} ends of intervals; {told['disagreeing']} disagree"
    )
    sys.exit(1 if told["disagreeing"] or not rows else 0)


if __name__ == "__main__":
    main()

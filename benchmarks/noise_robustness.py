"""How well the models of finished runs hold out against noise: accuracy and AUC on test images with more and more Gaussian noise.

    python -m benchmarks.noise_robustness runs/resnet34 runs/resnet34_svm runs/resnet34_cbam_svm --out runs/noise

Of each run of `consilium-server local`, with its hospitals' folders inside: noise is added to the prepared test images, before they are
normalised, and clipped to [0, 1]; the network is the run's last, and each hospital's SVM is fitted as the run fitted it, on training
images without noise. Nothing is trained again. The same hospital, image and size get the same noise in every run, so that models can be
compared. Deviations are in grey levels of 255. Writes noise.json, noise.md and two pictures, noise_accuracy.svg and noise_auc.svg.

A paper on ResNet-34 + CBAM + SVM claims robustness to noise without a measurement; this is one. Exit status 2 where a run can't be read.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from safetensors.numpy import load_file

from client.cohort import OpenCohort, open_cohort
from client.data.batches import Batches
from client.data.cache import ImageStore
from client.device import chosen_device
from client.evaluation import network_predictions
from client.features import PartFeatures
from client.site_folder import SiteFolder
from client.svm import fit_svm
from client.training import extract_features, resolve_auto
from server.report.charts import Series, line_chart, swatch
from server.run_folder import RunFolder
from shared.errors import ConsiliumError
from shared.metrics.classification import Predictions, figures
from shared.models import build_network
from shared.models.network import Network
from shared.models.state import load_travelling
from shared.seeds import derived_seed
from shared.study import Study

#: Deviations of the noise, in grey levels of 255.
LEVELS = (0, 5, 10, 20, 40, 60, 80)
BATCH = 64
HEADS = {"network": "network", "svm": "SVM"}
#: Paper and ink, whatever page the picture is put into.
_STYLE = Markup(
    "<style>svg{--ink:#1b1f24;--s0:#0067a8;--s1:#c24e00;--s2:#007a58;--s3:#a8488a;--s4:#7d6400;--s5:#2a8fd0;--s6:#333a42;"
    "background:#fff;font-family:sans-serif}text{font-size:12.5px;fill:#454d55}.grid{stroke:#d5dae0}</style>"
)


@dataclass(frozen=True)
class Point:
    """One head at one level. `site` is None for all hospitals: accuracy over all images, AUC weighted by images, as reports pool it."""

    run: str
    site: str | None
    head: str
    level: float
    images: int
    accuracy: float
    auc: float | None


def with_noise(images: np.ndarray, level: float, seed: int, *, channels: int | None = None) -> np.ndarray:
    """Prepared images (N, C, S, S), uint8 or float16, to float32 in [0, 1] with noise of `level` grey levels; unchanged values at 0.

    Only the first `channels` get noise where that is given: what follows is no image.
    """
    unit = np.asarray(images, dtype=np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
    if level:
        noise = np.random.default_rng(seed).standard_normal(unit[:, :channels].shape, dtype=np.float32)
        unit[:, :channels] = np.clip(unit[:, :channels] + noise * np.float32(level / 255), 0, 1)
    return unit.astype(np.float32)


def curve(
    network: Network,
    cohort: OpenCohort,
    study: Study,
    *,
    run: str,
    site: str,
    device: torch.device,
    levels: Sequence[float] = LEVELS,
    say: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Every head of one hospital at every level."""
    precision, layout = resolve_auto(study.training, device, network)
    if study.privacy is not None:
        precision, layout = "fp32", "contiguous"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def part(name: str, images: np.ndarray) -> PartFeatures:
        rows = cohort.parts[name]  # type: ignore[index]
        store = ImageStore(images, np.ones(len(rows), dtype=np.bool_), ())
        labels = cohort.labels[rows]
        batches = Batches(
            store, labels, range(len(rows)), recipe=study.preprocessing, batch_size=BATCH, device=device, memory_format=memory_format,
            metadata=cohort.roll.metadata[rows],
        )  # fmt: skip
        features, logits = extract_features(network, batches, device=device, precision=precision)
        return PartFeatures(tuple(cohort.keys[row] for row in rows), features, logits, labels, cohort.patients[rows])

    svm = None
    if study.head is not None:
        train = part("train", np.asarray(cohort.store.images[cohort.parts["train"]]))
        seed, classes = derived_seed("evaluation", study.seed, site), len(study.task.classes)
        svm = fit_svm(train.features, train.labels, train.patients, study.head, classes=classes, seed=seed)
    clean = np.asarray(cohort.store.images[cohort.parts["test"]])
    channels = None if study.preprocessing.mask is None else study.preprocessing.channels
    points = []
    for level in levels:
        say(f"{run}, {site}: noise of {level:g} grey levels")
        noisy = (
            clean
            if level == 0
            else with_noise(clean, level, derived_seed("noise", site, str(level)), channels=channels)
        )
        test = part("test", noisy)
        heads = {"network": network_predictions(test, study)}
        if svm is not None:
            predicted, scores = svm.predict(test.features)
            heads["svm"] = Predictions(
                test.labels, predicted, scores, test.patients.astype(np.str_), study.task.positive_index
            )
        points += [_point(run, site, name, level, said) for name, said in heads.items()]
    return points


def _point(run: str, site: str | None, head: str, level: float, said: Predictions) -> Point:
    overall = figures(said).overall
    auc = float(overall["auc"][0])
    return Point(
        run, site, head, level, said.images, float(overall["accuracy"][0]), auc if math.isfinite(auc) else None
    )


def pooled(points: Iterable[Point]) -> list[Point]:
    """All hospitals together, for each run, head and level; hospitals without an AUC don't count in it."""
    groups: dict[tuple[str, str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.run, point.head, point.level), []).append(point)
    found = []
    for (run, head, level), own in groups.items():
        images = sum(one.images for one in own)
        accuracy = sum(one.accuracy * one.images for one in own) / images
        ranked = [(one.auc, one.images) for one in own if one.auc is not None]
        auc = sum(area * count for area, count in ranked) / sum(count for _, count in ranked) if ranked else None
        found.append(Point(run, None, head, level, images, accuracy, auc))
    return found


def of_run(path: Path, levels: Sequence[float], say: Callable[[str], None]) -> list[Point]:
    """Every hospital of a finished run. Raises ConsiliumError, OSError, KeyError where it can't be read."""
    run = RunFolder(path)
    study, run_id = run.study(), run.run_id()
    models = sorted(path.glob("rounds/[0-9]*/model.safetensors"))
    weights = load_file(models[-1] if models else path / "model" / "initial.safetensors")
    points: list[Point] = []
    for site_path in sorted(one for one in (path / "sites").glob("*") if (one / "runs" / run_id).is_dir()):
        folder = SiteFolder(site_path)
        profile = folder.profile()
        cohort = open_cohort(study, folder, folder.run_folder(run_id))
        network = build_network(study, weights_root=folder.weights)
        load_travelling(network, weights)
        device = chosen_device(profile.device)
        points += curve(
            network, cohort, study, run=path.resolve().name, site=profile.site, device=device, levels=levels, say=say
        )
    if not points:
        raise ConsiliumError(
            f"{path}: no hospital's folder of this run is inside; only `consilium-server local` leaves them there"
        )
    return points


def table(points: Sequence[Point]) -> str:
    """Markdown: a row for each run, hospital and head, a column a level."""
    levels = sorted({point.level for point in points})
    keys = list(dict.fromkeys((point.run, point.site, point.head) for point in points))
    by_key = {(point.run, point.site, point.head, point.level): point for point in points}
    blocks = []
    for figure, title in (("accuracy", "Accuracy"), ("auc", "AUC")):
        head = ["run", "hospital", "model", *(f"{level:g}" for level in levels)]
        lines = [head, ["---"] * 3 + ["---:"] * len(levels)]
        for run, site, name in keys:
            values = [getattr(by_key[run, site, name, level], figure) for level in levels]
            lines.append([run, site or "all", HEADS[name], *("-" if one is None else f"{one:.3f}" for one in values)])
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        blocks.append(f"{title} by the noise's standard deviation in grey levels of 255:\n\n{text}")
    return "\n\n".join(blocks) + "\n"


def picture(points: Sequence[Point], figure: str) -> str:
    """One SVG file: a line for each run and head, of all hospitals together."""
    chosen = [point for point in points if point.site is None]
    names = list(dict.fromkeys((point.run, point.head) for point in chosen))
    series = [
        Series(
            f"{run}, {HEADS[head]}", style,
            [(one.level, getattr(one, figure)) for one in chosen if (one.run, one.head) == (run, head)],
        )
        for style, (run, head) in enumerate(names)
    ]  # fmt: skip
    title = "Accuracy" if figure == "accuracy" else "AUC"
    values = [value for one in series for _, value in one.points if value is not None]
    chart = line_chart(
        series, label=f"{title} against noise", x_label="standard deviation of the noise, grey levels of 255", y_label=title,
        y_range=(min([0.5, *values]), 1.0),
    )  # fmt: skip
    legend = Markup("").join(
        Markup('<g transform="translate(46 {})">{}<text x="42" y="11">{}</text></g>').format(
            258 + 20 * row, swatch(one.style), one.name
        )
        for row, one in enumerate(series)
    )
    height = 262 + 20 * len(series)
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="{0}" viewBox="0 0 480 {0}">{1}{2}{3}</svg>\n'
        ).format(height, _STYLE, chart, legend)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs of `consilium-server local`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="grey levels of 255")
    arguments = parser.parse_args()
    try:
        own = [
            point
            for run in arguments.runs
            for point in of_run(run, arguments.levels, lambda text: print(text, file=sys.stderr))
        ]
    except (ConsiliumError, OSError, KeyError) as problem:
        print(f"a run can't be read: {problem}", file=sys.stderr)
        sys.exit(2)
    points = [*own, *pooled(own)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "noise.json").write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    (arguments.out / "noise.md").write_text(table(points))
    for figure in ("accuracy", "auc"):
        (arguments.out / f"noise_{figure}.svg").write_text(picture(points, figure))
    print(table(points), end="")


if __name__ == "__main__":
    main()

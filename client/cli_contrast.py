"""`consilium-site contrast`: what a study's denoising and CLAHE do to this hospital's images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import InputError


def contrast(
    profile: Annotated[Path, typer.Argument(help="Site profile: a folder with profile.yaml, or the file")],
    study: Annotated[Path, typer.Option(help="A study with preprocessing.clahe or preprocessing.denoise")],
    images: Annotated[
        int, typer.Option(min=1, max=2000, help="Most images to look at, drawn by the study's seed")
    ] = 300,
) -> None:
    """Measure local contrast, visibility of the findings and noise before and after the study's denoising and CLAHE.

    Example: consilium-site contrast sites/demo/anna --study configs/cbis_ddsm_wa_resnet50.yaml
    """
    from rich.progress import Progress

    from client.data.contrast import FIGURES, MEANING, effect_of
    from client.data.registry import read_holding
    from client.data.selection import choose
    from shared.imaging.enhancement import is_enhanced
    from shared.profile import load_profile
    from shared.seeds import derived_seed
    from shared.study import load_study

    asked, site = load_study(study), load_profile(profile)
    if not is_enhanced(asked.preprocessing):
        raise InputError(f"{study}: preprocessing has neither clahe nor denoise, so there is nothing to compare")
    holding = read_holding(site.data, unit=asked.task.unit)
    cohort = choose(asked, holding, minimum_patients=site.policy.minimum_patients)
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("Reading images", total=None)
        effect = effect_of(
            cohort.records, asked.preprocessing, most=images, seed=derived_seed("contrast", asked.seed, site.site),
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )  # fmt: skip
    table = Table(title=f"{effect.images} of {effect.all_images} images of {site.site}", title_justify="left")
    for heading in ("mean over the images", "before", "after", "images"):
        table.add_column(heading, justify="left" if heading.startswith("mean") else "right")
    for change in effect.changes:
        table.add_row(FIGURES[change.name], f"{change.before:.3f}", f"{change.after:.3f}", str(change.images))
    console.print(table)
    told = f" {effect.unreadable} could not be read." if effect.unreadable else ""
    console.print(MEANING + told, soft_wrap=True, markup=False, highlight=False)

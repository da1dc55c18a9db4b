"""What the hospital's page shows of heat maps: the image and beside it the same image with its heat, and how much falls on lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.heat_maps import overlaid
from client.lesion_heat import HeatMaps
from client.page_figures import ImageOf, png_data_uri
from shared.metrics.classification import Predictions

_RIGHT_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Pictures:
    """Test images as the page has them, with their heat where the network has a map and the images are at hand."""

    image_of: ImageOf | None
    heat: HeatMaps | None

    def of(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """data: URIs of each test image and of the image with its heat; empty texts where there is none."""
        if self.image_of is None:
            return [("", "")] * len(rows)
        images = [self.image_of(row) for row in rows]
        plain = [png_data_uri(image) for image in images]
        if self.heat is None:
            return [(one, "") for one in plain]
        heats = self.heat.heat(rows)
        return [
            (one, png_data_uri(overlaid(image, heat))) for one, image, heat in zip(plain, images, heats, strict=True)
        ]


def looks(
    heat: HeatMaps | None,
    network: Predictions,
    keys: Sequence[str],
    classes: Sequence[str],
    pictures: Pictures,
    *,
    seed: int,
) -> dict[str, Any] | None:
    """Values of the section on where the network looks; None where its architecture has no feature map.

    Shown are the images that it is right about and surest of, of the positive class and of the others.
    """
    if heat is None:
        return None
    on = heat.on_lesions(seed=seed)
    groups = []
    for title, of_class in (
        (f"Found: is {classes[network.positive]}, and said so", True),
        (f"Right, and not {classes[network.positive]}", False),
    ):
        rows = _surest(network, of_class)
        cards = [
            {
                "key": keys[row],
                "truth": classes[int(network.truth[row])],
                "probability": f"network: {100 * network.scores[row, network.predicted[row]]:.0f} %",
                "image": image,
                "heat": warm,
            }
            for row, (image, warm) in zip(rows, pictures.of(rows), strict=True)
        ]
        groups.append({"title": title, "cards": cards})
    return {
        "layer": heat.layer,
        "cells": f"{heat.cells[0]} x {heat.cells[1]}",
        "masked": sum(len(one) > 1 for one in heat.files),
        "on_lesions": None
        if on is None
        else {
            "images": on.images,
            "without": on.without_heat,
            "inside": f"{100 * on.inside:.0f} %",
            "area": f"{100 * on.area:.0f} %",
            "times": f"{on.inside / on.area:.1f}" if on.area > 0 else "–",
        },
        "groups": groups,
    }


def _surest(network: Predictions, of_class: bool) -> list[int]:
    right = network.truth == network.predicted
    rows = np.flatnonzero(right & ((network.truth == network.positive) == of_class))
    chance = network.scores[rows, network.predicted[rows]]
    return [int(row) for row in rows[np.argsort(-chance, kind="stable")][:_RIGHT_SHOWN]]

"""Names of `model.name`, what builds them, and which options each has. A new model is one module and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.errors import StudyError
from shared.models import cnn_vit, efficientnet, googlenet, mobilenet, rcdnet, regnet, resnet, skinnet, vgg, vit
from shared.models.network import Network
from shared.study import Study

Builder = Callable[[Study], Network]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model and the values of `model.norm`, `model.attention` and `model.stem` that it has.

    `metadata` says whether it takes metadata of the patient; what takes some needs some. `mask` is what it makes of a lesion's mask: one
    more channel of its input where there is one, nothing, or something without which it can't be.
    """

    build: Builder
    norm: tuple[str, ...] = ("batch", "group")
    attention: tuple[str, ...] = ("none",)
    stem: tuple[str, ...] = ("plain",)
    metadata: bool = False
    mask: Literal["channel", "none", "needed"] = "channel"


def _residual(build: Builder) -> Entry:
    return Entry(build, attention=("none", "se", "cbam"), stem=("plain", "haar", "haar_attention", "haar_features"))


MODELS: Mapping[str, Entry] = {
    "resnet18": _residual(resnet.resnet18),
    "resnet34": _residual(resnet.resnet34),
    "resnet50": _residual(resnet.resnet50),
    "resnext50_32x4d": _residual(resnet.resnext50_32x4d),
    "vgg16": Entry(vgg.vgg16, norm=("none",)),
    "vgg16_bn": Entry(vgg.vgg16_bn),
    "googlenet": Entry(googlenet.googlenet),
    "mobilenet_v2": Entry(mobilenet.mobilenet_v2),
    "regnet_y_400mf": Entry(regnet.regnet_y_400mf),
    "efficientnet_b0": Entry(efficientnet.efficientnet_b0),
    "efficientnet_b3": Entry(efficientnet.efficientnet_b3),
    "vit_b_16": Entry(vit.vit_b_16, norm=("none",)),
    "cnn_vit": Entry(cnn_vit.cnn_vit),
    "rcdnet": Entry(rcdnet.rcdnet),
    "skinnet_v1": Entry(skinnet.skinnet_v1, metadata=True, mask="none"),
    "skinnet_v2": Entry(skinnet.skinnet_v2, metadata=True, mask="needed"),
    "skinnet_v3": Entry(skinnet.skinnet_v3, metadata=True, mask="needed"),
    "skinnet_v4": Entry(skinnet.skinnet_v4, metadata=True, mask="needed"),
}


def builder_of(name: str) -> Builder:
    """What builds the model `name`. Raises StudyError with the nearest known name."""
    if name in MODELS:
        return MODELS[name].build
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known models are {', '.join(sorted(MODELS))}"
    raise StudyError(f"model.name: unknown model '{name}'; {hint}")


def require_options(study: Study) -> None:
    """Raises StudyError where a known model lacks an option that the study sets, with the values that it has, or an input."""
    model = study.model
    entry = MODELS[model.name]
    if study.metadata and not entry.metadata:
        raise StudyError(f"metadata: {model.name} takes none; leave them out, or use {_with_metadata()}")
    if entry.metadata and not study.metadata:
        raise StudyError(f"metadata: {model.name} needs some, and the study lists none")
    if entry.mask == "needed" and not study.mask_is_input:
        raise StudyError(
            f"preprocessing.mask: {model.name} looks at the lesion's mask, and the study says not where it is from"
        )
    if entry.mask == "none" and study.mask_is_input:
        raise StudyError(f"preprocessing.mask: {model.name} takes no notice of it; leave it out")
    for key, offered in (("norm", entry.norm), ("attention", entry.attention), ("stem", entry.stem)):
        value = getattr(model, key)
        if value not in offered:
            raise StudyError(
                f"model.{key}: expected {' or '.join(offered)}, which is what {model.name} has, but got {value}"
            )


def _with_metadata() -> str:
    return ", ".join(sorted(name for name, entry in MODELS.items() if entry.metadata))

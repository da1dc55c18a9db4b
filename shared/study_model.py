"""Part of a study: the network and its starting weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.schema import Name, Sha256, Strict


class WeightsFile(Strict):
    """Starting weights in a local file (.safetensors, or a PyTorch state_dict); torchvision's key names."""

    file: str
    sha256: Sha256
    source: str = Field(description="where the weights were published and what they were trained on")
    origin: Literal["public", "federation"] = Field(
        default="public",
        description="federation: trained on hospitals' patients, so no starting point of a private study",
    )


#: `model.name` of several runs' models as one.
ENSEMBLE = "ensemble"


class Model(Strict):
    """Backbone and its options. `freeze` names the children whose parameters and statistics stay as loaded."""

    name: Name
    attention: Literal["none", "se", "cbam"] = "none"
    cbam_at: Literal["after_block", "before_add", "stage_outputs"] | None = None
    se_at: Literal["after_block", "before_add", "stage_outputs"] | None = Field(
        default=None, description="None: before_add, as in SE's own paper"
    )
    stem: Literal["plain", "haar", "haar_attention", "haar_features"] = Field(
        default="plain",
        description="ResNets: Haar bands of the input, wavelet attention on the input, or Haar bands in place of max pooling",
    )
    norm: Literal["batch", "group", "none"] = Field(
        default="batch", description="none: a network that has neither, as vgg16 and vit_b_16"
    )
    weights: Literal["none", "torchvision"] | WeightsFile = "none"
    members: list[WeightsFile] = Field(
        default_factory=list,
        max_length=20,
        description="ensemble: two or more files of `consilium-server export`, whose probabilities are averaged; all are frozen",
    )
    freeze: list[str] = Field(default_factory=list, description="e.g. [conv1, bn1, layer1]")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="before the last linear layer; of VGG, before its last two"
    )

    widths: list[Annotated[int, Field(ge=8, le=2048)]] | None = Field(
        default=None,
        min_length=2,
        max_length=6,
        description="split_attention_unet: channels by level, from full resolution down; None: [128, 256, 512, 512]",
    )

    @model_validator(mode="after")
    def _check_members(self) -> Model:
        if (self.name == ENSEMBLE) != bool(self.members):
            raise ValueError(f"members must be given with name: {ENSEMBLE}, and only then")
        if not self.members:
            return self
        if len({member.sha256 for member in self.members}) < max(2, len(self.members)):
            raise ValueError("members: an ensemble is of two or more different models, each named once")
        bare = Model.model_construct(name=self.name, members=self.members)
        if odd := [key for key in Model.model_fields if getattr(self, key) != getattr(bare, key)]:
            raise ValueError(f"{', '.join(odd)}: an ensemble's members bring their own; leave it out")
        return self

    @model_validator(mode="after")
    def _check(self) -> Model:
        if (self.attention == "cbam") != (self.cbam_at is not None):
            raise ValueError("cbam_at must be given with attention: cbam, and only then")
        if self.se_at is not None and self.attention != "se":
            raise ValueError("se_at is a setting of attention: se")
        if self.freeze and self.weights == "none":
            raise ValueError("freeze needs starting weights: frozen layers of an untrained network learn nothing")
        return self

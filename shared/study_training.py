"""Part of a study: what each hospital does in one round."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict


class Focal(Strict):
    """Focal loss -alpha_y (1 - p_y)^gamma log p_y (Lin et al., ICCV 2017, equation 5), with a softmax over the classes.

    alpha `balanced` is n / (k n_c) of the site's own n images, k classes and n_c images of the class: private counts, so in a private
    study alpha must be `none` or public weights, one for each class by name.
    """

    gamma: float = Field(default=2.0, ge=0, le=10)
    alpha: Literal["none", "balanced"] | dict[Name, Annotated[float, Field(gt=0)]] = "none"

    @field_validator("alpha")
    @classmethod
    def _by_name(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        return value if isinstance(value, str) else dict(sorted(value.items()))


class Restarts(Strict):
    """Cosine annealing that starts anew (SGDR: Loshchilov, Hutter, ICLR 2017, equation 5, down to 0), counted in rounds."""

    first: int = Field(ge=1, description="T_0: rounds of the first cycle")
    factor: int = Field(default=1, ge=1, description="T_mult: each cycle is this much longer than the one before")

    def share(self, passed: int) -> float:
        """Of the learning rate after `passed` whole rounds: 1 at each start."""
        length = self.first
        while passed >= length:
            passed -= length
            length *= self.factor
        return 0.5 * (1.0 + math.cos(math.pi * passed / length))


class Stage(Strict):
    """Some rounds in which parts of the network are held: they stay as they are, their norms in eval mode, and no update holds them."""

    rounds: int = Field(ge=1)
    freeze: list[str] = Field(description="children of the network that are held, e.g. [features]; none holds nothing")


class Training(Strict):
    """What each hospital does in one round."""

    local_epochs: int | None = Field(
        default=None, ge=1, le=1000, description="passes over the train part; must be given unless the study is private"
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="images; must be given unless the study is private"
    )
    optimiser: Literal["adam", "adamw", "sgd"] | None = Field(
        default=None, description="must be given, unless the model is an ensemble, which trains nothing"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="as optimiser")
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts"] = Field(
        default="constant",
        description="how the learning rate falls from round to round, towards 0 after the last (of each cycle, with restarts)",
    )
    restarts: Restarts | None = Field(default=None, description="cosine_restarts only, and must be given there")
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(default=False, description="sgd with momentum only")
    optimiser_state: Literal["reset", "keep"] = Field(
        default="reset", description="whether a site's optimiser starts anew each round or goes on"
    )
    loss: Literal["binary_cross_entropy", "cross_entropy", "focal", "cross_entropy_dice"] = Field(
        description="cross_entropy_dice, of a segmentation study and only there: each image's mean binary cross-entropy over its pixels "
        "plus its Dice loss"
    )
    focal: Focal | None = Field(default=None, description="loss: focal only, and must be given there")
    stages: list[Stage] = Field(
        default_factory=list,
        description="one after the other, all rounds together; none: everything is trained in every round",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: weights from the site's own class counts"
    )
    descriptor_weight: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="w in an image's loss + w x mean over the descriptors of their cross-entropy, 0 where the image has none; "
        "with task.descriptors only, and must be given there",
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum is a setting of sgd, but the optimiser is {self.optimiser}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is a form of momentum, but momentum is 0")
        for part, belongs, key in (("restarts", "cosine_restarts", "schedule"), ("focal", "focal", "loss")):
            if (getattr(self, part) is not None) != (getattr(self, key) == belongs):
                raise ValueError(f"{part} must be given with {key}: {belongs}, and only then")
        if self.focal is not None and self.class_weights != "none":
            raise ValueError("class_weights would weigh the classes a second time: focal loss has its own, focal.alpha")
        return self

    def stage_of(self, number: int) -> tuple[int, Stage | None]:
        """The stage of round `number` (from 1), and the first round of it; (1, None) without stages."""
        first = 1
        for stage in self.stages:
            if number < first + stage.rounds:
                return first, stage
            first += stage.rounds
        return 1, None

    def held_in(self, number: int) -> tuple[str, ...]:
        """Children of the network that round `number` (from 1) leaves as they are, for this stage only."""
        _, stage = self.stage_of(number)
        return tuple(stage.freeze) if stage is not None else ()

    def in_round(self, number: int, rounds: int) -> Training:
        """These settings with the learning rate of round `number` (from 1) of `rounds`."""
        if self.learning_rate is None:
            raise ValueError("the study gives no learning rate: it trains nothing")
        passed = (number - 1) / rounds
        factor = {"constant": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed))}
        if self.restarts is not None:
            factor["cosine_restarts"] = self.restarts.share(number - 1)
        return self.model_copy(update={"learning_rate": self.learning_rate * factor[self.schedule]})

"""Parts of a study's training recipe: settings of one loss or one schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

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

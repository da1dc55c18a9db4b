"""Part of a study: rounds, quorum, deadlines, and what the coordinator does with updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.schema import Name, Strict


class ServerOptimiser(Strict):
    """What the coordinator does with the mean update (Reddi et al., Adaptive Federated Optimization, 2021)."""

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1, description="momentum of fedavgm, fedadam and fedyogi")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="fedadam and fedyogi")
    tau: float = Field(default=1e-3, gt=0, description="adaptivity of fedadam and fedyogi")


class KeepModels(Strict):
    """Models of earlier rounds stay in the run's folder, each as large as the model, for `consilium-server export --round`."""

    every: int = Field(ge=1, description="rounds: 5 keeps those after rounds 5, 10, 15, ...")


class Federation(Strict):
    """Rounds, quorum, deadlines, and how updates are weighed and sent."""

    rounds: int = Field(ge=0, le=100_000)
    quorum: int = Field(ge=1, description="fewest updates that make a round")
    join_deadline_s: float = Field(default=600, gt=0, description="how long to wait for the sites before round 0")
    prepare_deadline_s: float = Field(default=7200, gt=0, description="round 0: reading the data, filling the cache")
    round_deadline_s: float = Field(default=7200, gt=0)
    evaluation_deadline_s: float = Field(default=7200, gt=0)
    weighting: Literal["counts", "uniform"] | dict[Name, Annotated[float, Field(gt=0)]] = Field(
        description="by each site's training images, all equal, or public weights by site name"
    )
    optimiser: ServerOptimiser = ServerOptimiser()
    wire: Literal["fp32", "bf16"] = Field(
        default="fp32", description="number format of weights and updates in transport"
    )
    keep_updates: bool | None = Field(
        default=None,
        description="keep every site's update, so that an auditor can aggregate again; null: where the study is private",
    )
    keep_models: KeepModels | None = Field(
        default=None, description="None: of the global models only those after the last two rounds are kept"
    )

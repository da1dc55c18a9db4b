"""One question to three accountants: what did these events cost? Two of them are tight and share no code; they must agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from shared.audit.privacy_loss import composed_epsilon
from shared.privacy.mechanisms import Events
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon

#: Most that the two tight epsilons may differ by.
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class EpsilonCheck:
    """Epsilons at `delta`: `rdp` as a hospital charges it, `pld` by dp-accounting, `independent` by `shared.audit.privacy_loss`."""

    delta: float
    rdp: float
    pld: float
    independent: float

    @property
    def difference(self) -> float:
        return self.independent - self.pld

    @property
    def agree(self) -> bool:
        """The two tight epsilons are within TOLERANCE of each other."""
        return abs(self.difference) <= TOLERANCE

    @property
    def charged_enough(self) -> bool:
        """RDP, an upper bound, is not below the tight epsilons by more than the rounding of their grids (1e-3)."""
        return self.rdp >= max(self.pld, self.independent) - 1e-3

    def lines(self) -> tuple[tuple[str, float], ...]:
        """Name and value of each figure, as a table shows them."""
        return (
            ("RDP (what a hospital charges)", self.rdp),
            ("PLD by dp-accounting", self.pld),
            ("PLD by the independent implementation", self.independent),
            ("difference of the two PLDs", self.difference),
        )

    def as_json(self) -> dict[str, float | bool]:
        """Every figure and both answers."""
        return {
            **asdict(self),
            "difference": self.difference,
            "agree": self.agree,
            "charged_enough": self.charged_enough,
        }

    def sentence(self) -> str:
        if not self.agree:
            return (
                f"The two tight epsilons differ by {abs(self.difference):.4f}, more than {TOLERANCE:g}: trust neither."
            )
        if not self.charged_enough:
            return "RDP is below the tight epsilons: a hospital that charges it charges too little."
        return f"The two tight epsilons agree within {TOLERANCE:g}, and RDP, which hospitals charge, is not below them."


def check_epsilon(events: Events, delta: float) -> EpsilonCheck:
    """Ask all three. Raises MechanismError where delta is out of its range."""
    return EpsilonCheck(
        delta=delta,
        rdp=rdp_epsilon(events, delta),
        pld=pld_epsilon(events, delta),
        independent=composed_epsilon(events, delta),
    )

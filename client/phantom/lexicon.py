"""Calcification descriptors of BI-RADS and how the phantom ties them to pathology.

Source: D'Orsi et al., ACR BI-RADS Atlas, 5th edition (2013), Mammography, section B (calcifications): typically benign
and suspicious morphology, and distribution. The cell vocabulary is that of the CBIS-DDSM tables (Lee et al., Sci Data
4:170177, 2017), which predates the 5th edition (`PLEOMORPHIC` for "fine pleomorphic", `CLUSTERED` for "grouped").
"""

from __future__ import annotations

from enum import StrEnum


class Morphology(StrEnum):
    """Shape of the single particles, spelled as in the column `calc type`."""

    ROUND = "ROUND_AND_REGULAR"
    PUNCTATE = "PUNCTATE"
    COARSE = "COARSE"
    LUCENT_CENTER = "LUCENT_CENTER"
    AMORPHOUS = "AMORPHOUS"
    PLEOMORPHIC = "PLEOMORPHIC"
    FINE_LINEAR_BRANCHING = "FINE_LINEAR_BRANCHING"


class Distribution(StrEnum):
    """Arrangement of the particles in the breast, spelled as in the column `calc distribution`."""

    SCATTERED = "DIFFUSELY_SCATTERED"
    REGIONAL = "REGIONAL"
    CLUSTERED = "CLUSTERED"
    LINEAR = "LINEAR"
    SEGMENTAL = "SEGMENTAL"


BENIGN_MORPHOLOGY = (Morphology.ROUND, Morphology.PUNCTATE, Morphology.COARSE, Morphology.LUCENT_CENTER)
"""Typically benign in BI-RADS; punctate is benign unless newly clustered."""

SUSPICIOUS_MORPHOLOGY = (Morphology.AMORPHOUS, Morphology.PLEOMORPHIC, Morphology.FINE_LINEAR_BRANCHING)
"""BI-RADS 4B to 4C."""

BENIGN_DISTRIBUTION = (Distribution.SCATTERED, Distribution.REGIONAL)

SUSPICIOUS_DISTRIBUTION = (Distribution.CLUSTERED, Distribution.LINEAR, Distribution.SEGMENTAL)

AMBIGUOUS_SHARE = 0.08
"""Share of the findings whose morphology, distribution or both are typical of the other pathology.

Chosen, not published: it keeps the best reachable AUC near 0.95.
"""

"""A synthetic mammography site in the published layout of CBIS-DDSM.

The phantom lets a hospital, a test or a demonstration run the whole of Consilium without a patient's image. Every
pixel, header and table cell is drawn from a seed; nothing is derived from a person. It is no stand-in for clinical
data: numbers measured on it say that the software works, never that a model is fit for care.
"""

from client.phantom.scanners import SCANNERS, Scanner
from client.phantom.site import PhantomSummary, write_phantom

__all__ = ["SCANNERS", "PhantomSummary", "Scanner", "write_phantom"]

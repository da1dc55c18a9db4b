"""Networks of the model family, and which of their tensors travel."""

from shared.models.build import build_network

__all__ = ["build_network"]

"""Which device a site computes on."""

from __future__ import annotations

import logging

import torch

from shared.errors import ProfileError

log = logging.getLogger("consilium.site")


def chosen_device(setting: str) -> torch.device:
    """The device that a profile's `device` means: auto is the first CUDA GPU, or the CPU. Raises ProfileError."""
    if setting == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ProfileError(f"device: {setting} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def limit_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let this process take at most `gigabytes` (10^9 bytes) of a GPU's memory; beyond it PyTorch raises OutOfMemoryError.

    None sets no limit. On a CPU there is no such limit, and the site's log says so.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if gigabytes is None else min(1.0, gigabytes * 1e9 / total)
        torch.cuda.set_per_process_memory_fraction(share, device)
    elif gigabytes is not None:
        log.warning("policy.maximum_device_memory_gb has no effect: this site computes on a CPU")


def device_name(device: torch.device) -> str:
    """'cpu', or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

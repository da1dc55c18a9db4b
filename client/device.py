"""Which device a site computes on."""

from __future__ import annotations

import torch

from shared.errors import ProfileError


def chosen_device(setting: str) -> torch.device:
    """The device that a profile's `device` means: auto is the first CUDA GPU, or the CPU. Raises ProfileError."""
    if setting == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ProfileError(f"device: {setting} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def device_name(device: torch.device) -> str:
    """'cpu', or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

"""Which device a model runs on."""

import torch

from rlhf.errors import ConfigError


def resolve_device(name: str, field: str) -> torch.device:
    """Returns the device that a configuration names: "auto" is CUDA where there is some, else the CPU.

    Raises: ConfigError naming `field`, the dotted path it was configured by, if it is a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    num_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise ConfigError(f"{field} is '{name}', but torch sees {num_devices} CUDA devices; use --{field} auto")
    return device

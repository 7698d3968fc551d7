"""Grafana's units, as far as our dashboards use them: a number as a reader wants it."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

SECOND_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
SI_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
BYTE_STEPS = ((1024.0**4, "TiB"), (1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"), (1.0, "B"))
RATE_STEPS = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))
SUFFIX = "suffix:"


def plain(value: float) -> str:
    """Returns three digits of a number, without an exponent where it needs none."""
    return _stepped(value, SI_STEPS) if abs(value) >= 1e3 else f"{value:.3g}"


def _stepped(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}".rstrip()
    size, name = steps[-1]
    return f"{value / size:.3g} {name}".rstrip()


FORMATS: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "none": plain,
        "short": plain,
        "percentunit": lambda value: f"{100 * value:.3g}%",
        "percent": lambda value: f"{value:.3g}%",
        "s": lambda value: "0 s" if value == 0 else _stepped(value, SECOND_STEPS),
        "bytes": lambda value: _stepped(value, BYTE_STEPS),
        "Bps": lambda value: "0 B/s" if value == 0 else _stepped(value, RATE_STEPS),
        "reqps": lambda value: f"{plain(value)} req/s",
        "watt": lambda value: f"{plain(value)} W",
        "celsius": lambda value: f"{plain(value)} °C",
    }
)


def format_value(value: float, unit: str) -> str:
    """Returns a value in a unit of Grafana. Raises: KeyError if our dashboards do not use it."""
    if not math.isfinite(value):
        return str(value)
    if unit.startswith(SUFFIX):
        return f"{plain(value)} {unit.removeprefix(SUFFIX).strip()}"
    return FORMATS[unit](value)

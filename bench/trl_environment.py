"""A virtual environment of its own for TRL 1.12, with the same torch and transformers as this one."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from rlhf_cli.models.fetch import default_cache_dir

TRL_VERSION = "1.12.0"
"""The last that has a PPO trainer (trl.experimental.ppo)."""

INSTALL_TIMEOUT_SECONDS = 1800


class InstallError(Exception):
    """The environment could not be made; the message has the installer's last lines."""


def default_environment() -> Path:
    """Where the environment is kept between runs."""
    return default_cache_dir() / f"trl-{TRL_VERSION}"


def ensure_environment(folder: Path) -> Path:
    """Returns the environment's Python; installs into the folder on the first call, or when the versions have changed.

    Raises: InstallError.
    """
    requirements = [f"torch=={version('torch')}", f"transformers=={version('transformers')}", f"trl=={TRL_VERSION}"]
    marker = folder / ".installed"
    python = folder / "bin" / "python"
    if marker.is_file() and marker.read_text().split() == requirements:
        return python
    marker.unlink(missing_ok=True)
    print(f"installing {', '.join(requirements)} in {folder}", file=sys.stderr)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "uv"])
    _install_torch(folder, requirements[0])
    _uv_install(folder, *requirements[1:])
    marker.write_text("\n".join(requirements))
    return python


def _install_torch(folder: Path, requirement: str) -> None:
    """As scripts/install does it: a CPU build from pip's configured sources if they have it, else from PyTorch's."""
    plain, _, build = requirement.partition("+")
    if build != "cpu":
        _uv_install(folder, "--torch-backend=auto", plain)
        return
    try:
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement])
    except InstallError:
        _uv_install(folder, "--torch-backend=cpu", plain)


def _uv_install(folder: Path, *arguments: str) -> None:
    _run([str(folder / "bin" / "uv"), "pip", "install", "--quiet", *arguments], folder)


def _run(command: list[str], environment: Path | None = None) -> None:
    variables = dict(os.environ)
    if environment is not None:
        variables["VIRTUAL_ENV"] = str(environment)
        variables.setdefault("UV_FIND_LINKS", variables.get("PIP_FIND_LINKS", ""))
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False
    )
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise InstallError(f"{' '.join(command)} failed:\n{last_lines}")

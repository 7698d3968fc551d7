"""The distribution is the tree: every room is listed, and what each ships exists."""

import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_room_is_packaged():
    services = ROOT / "services"
    folders = [path.parent.relative_to(services) for path in services.glob("*/**/__init__.py")]
    rooms = {".".join(("rlhf_services", *folder.parts)) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == rooms | {"rlhf_services", "rlhf_services.v1"}


def test_every_pattern_of_package_data_matches_a_file():
    folders = {"rlhf_services": ROOT / "services", "rlhf_services.v1": ROOT / "protos/rlhf_services/v1"}
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = folders.get(package, ROOT / "services" / package.removeprefix("rlhf_services."))
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern}"


def test_every_command_exists_and_shows_its_help():
    commands = {
        script.name: script for script in entry_points(group="console_scripts") if script.name.startswith("rlhf")
    }
    assert set(commands) == set(PYPROJECT["project"]["scripts"])
    for name, script in commands.items():
        assert callable(script.load()), name


def test_no_file_of_ours_is_over_the_size_that_a_reader_takes_in():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tracked.split() if "_pb2" not in name]
    long = {str(file.relative_to(ROOT)) for file in files if file.is_file() and file.read_text().count("\n") > 400}
    assert not long

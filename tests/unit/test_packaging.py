"""The distribution is the tree: every folder with code is shipped with the data it reads, and the commands exist."""

import subprocess
import tomllib
from importlib.metadata import entry_points

from setuptools import find_packages

from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("rlhf", "services", "rlhf_cli")


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split() if (ROOT / name).is_file()]


def test_every_folder_with_code_is_packaged():
    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {name.rpartition("/")[0].replace("/", ".") for package in PACKAGES for name in tracked(f"{package}/*.py")}
    assert set(find_packages(str(ROOT), include=include)) == folders


def test_every_file_that_is_no_code_is_package_data():
    endings = {pattern.removeprefix("*") for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["*"]}
    for package in PACKAGES:
        for name in tracked(package):
            assert name.endswith((".py", *endings)), name


def test_every_command_exists_and_shows_its_help():
    commands = {
        script.name: script for script in entry_points(group="console_scripts") if script.name.startswith("rlhf")
    }
    assert set(commands) == set(PYPROJECT["project"]["scripts"])
    for name, script in commands.items():
        assert callable(script.load()), name


def test_no_file_of_ours_is_over_the_size_that_a_reader_takes_in():
    for name in tracked("*.py"):
        limit = 350 if name.startswith(tuple(f"{package}/" for package in PACKAGES)) else 400
        assert "_pb2" in name or (ROOT / name).read_text().count("\n") <= limit, name

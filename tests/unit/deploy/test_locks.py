"""The images' lock files: whole, hashed, in step with pyproject.toml, and the same for everyone."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "docker" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "cli": ["k8s"],
    "model-cpu": ["reward", "fetch", "otel"],
    "model-gpu": ["reward", "fetch", "otel"],
    "trainer-cpu": ["lora", "fetch", "otel"],
    "trainer-gpu": ["lora", "fetch", "otel"],
    "policy-cpu": ["policy-cpu", "fetch", "otel"],
    "policy-gpu": ["policy", "fetch", "otel"],
}
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==(?P<version>\S+)")


def pins_of(lock: str) -> dict[str, str]:
    """The version of every package of a lock file."""
    matches = (PIN.match(line) for line in (FOLDER / f"{lock}.txt").read_text().splitlines())
    return {match["name"]: match["version"] for match in matches if match}


def needs_of(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for: the core's dependencies, and those of extras, with the extras that these name."""
    requirements = list(map(Requirement, PROJECT["dependencies"]))
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            own = requirement.name == PROJECT["name"]
            requirements += needs_of(sorted(requirement.extras)) if own else [requirement]
    return requirements


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_file_pins_what_the_project_needs(lock: str) -> None:
    pins = pins_of(lock)
    wrong = {
        f"{need}: {pins.get(need.name.lower().replace('_', '-'))}"
        for need in needs_of(EXTRAS[lock])
        if not need.specifier.contains(pins.get(need.name.lower().replace("_", "-"), "0"), prereleases=True)
    }
    assert not wrong, "run `make locks`"


@pytest.mark.parametrize("lock", [*EXTRAS, "tools"])
def test_every_package_has_a_hash_and_no_line_names_a_machine(lock: str) -> None:
    text = (FOLDER / f"{lock}.txt").read_text()
    packages = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert packages
    assert all("==" in package and "--hash=sha256:" in package for package in packages)
    assert not re.search(r"(^|\s)(/|file:|https?:|-f |--find-links|--index-url|--extra-index-url)", text)


def test_images_without_torch_do_not_carry_it_and_those_for_cpus_carry_no_cuda() -> None:
    assert not {"torch", "transformers", "numpy"} & set(pins_of("cli"))
    for lock in ("model-cpu", "trainer-cpu", "policy-cpu"):
        pins = pins_of(lock)
        assert pins["torch"].endswith("+cpu")
        assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]

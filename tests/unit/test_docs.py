"""README and docs name only what exists: links, anchors, paths, commands, flags, configuration keys."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlhf.config import Section, sections_of
from rlhf_cli.main import COMMANDS, LazyGroup
from rlhf_cli.pipeline.config import PipelineConfig
from services.policy.config import PolicyConfig
from services.reference.config import ReferenceConfig
from services.reward.config import RewardConfig
from services.trainer.trainings import TRAININGS
from tests.support.house import PACKAGES
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").rglob("README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(r"`((?:rlhf|services|rlhf_cli|protos|tests|deploy|bench|examples|docs|scripts)/[\w./*-]+)`")
NAMED_KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?: = [^`]*)?`")
FILE_ENDINGS = (".py", ".toml", ".md", ".json", ".yaml")
PLACES = ("https://", "http://", "mailto:")


def anchors_of(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    """Returns the relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if link.startswith(PLACES):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def missing_paths(page: Path) -> list[str]:
    """Returns the paths that a page names in code style, seen from the root, of which no file exists; NAME is any."""
    named = NAMED_PATH.findall(page.read_text())
    return [path for path in named if not any(ROOT.glob(path.rstrip("/").replace("NAME", "*")))]


def keys_of(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Returns the dotted paths of a configuration's keys, of its sections at any depth too."""
    keys = {prefix + field for field in section.model_fields}
    for field in section.model_fields:
        for inner in sections_of(section, field, in_list=True):
            keys |= keys_of(inner, f"{prefix}{field}.")
    return keys


CONFIGURATIONS: tuple[type[Section], ...] = (PolicyConfig, RewardConfig, ReferenceConfig, PipelineConfig)
KEYS = set().union(*map(keys_of, (*CONFIGURATIONS, *(each.config_class for each in TRAININGS.values()))))
SECTIONS = {key.split(".")[0] for key in KEYS if "." in key}


def unknown_keys(page: Path) -> list[str]:
    """Returns the keys that a page names in code style, begun with a section of ours, which no configuration has."""
    named = [key for key in NAMED_KEY.findall(page.read_text()) if not key.endswith(FILE_ENDINGS)]
    return [key for key in named if key.split(".")[0] in SECTIONS and key not in KEYS]


def test_the_architecture_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = [str(path.parent.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")]
    assert [room for room in rooms if f"`{room}`" not in page and f"`{room}/" not in page] == []


def test_files_named_in_docstrings_and_comments_exist():
    known = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    named = {
        (file, path)
        for file in known
        for path in re.findall(r"(?<![\w/.-])((?:\w+/)*\w+\.py)\b", (ROOT / file).read_text())
    }
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    exists = {path for _, path in named if any(f"/{each}".endswith(f"/{path}") for each in known | tests)}
    assert [(file, path) for file, path in sorted(named) if path not in exists] == []


def commands_in(page: Path) -> list[list[str]]:
    """Returns the words of each `rlhf` and `make` command in the code blocks of a page."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = "\n".join(block for language, block in blocks if language in ("", "sh", "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(rlhf|make) [a-z]", line)]


def fault_of(words: list[str]) -> str | None:
    """Returns what a command names that does not exist. Keys of configurations (--training.steps) are not looked at."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return next((word for word in words[1:] if "=" not in word and word not in targets), None)
    command: Any = LazyGroup("rlhf", "", COMMANDS)
    rest = words[1:]
    while hasattr(command, "get_command") and rest:
        name, rest = rest[0], rest[1:]
        command = command.get_command(None, name)
        if command is None:
            return name
    flags = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
    return next((word for word in rest if re.match(r"--?[a-z][a-z-]*$", word) and word not in flags), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page: Path):
    faults = {shlex.join(words): fault for words in commands_in(page) if (fault := fault_of(words))}
    assert faults == {}


def test_a_wrong_command_is_found():
    assert fault_of(shlex.split("rlhf runs list --nope")) == "--nope"
    assert fault_of(["rlhf", "nope"]) == "nope"
    assert fault_of(["make", "nope"]) == "nope"
    assert fault_of(shlex.split("rlhf train ppo --config x --training.steps 3 --resume")) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_paths_and_keys_exist(page: Path):
    assert broken_links(page) == []
    assert missing_paths(page) == []
    assert unknown_keys(page) == []


def test_what_does_not_exist_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`\n[a](#a-b) [b](#two) [c](none.md) `rlhf/errors.py` `rlhf/none.py` `kl.coef` `kl.coeff`\n")
    assert broken_links(page) == ["#two", "none.md"]
    assert missing_paths(page) == ["rlhf/none.py"]
    assert unknown_keys(page) == ["kl.coeff"]

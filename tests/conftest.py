"""Fixtures that several tests share. The models are made once a session; a test that changes one loads its own."""

import os
import socketserver
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

from rlhf.process import sleep_at_barriers

sleep_at_barriers()  # tests run whole services side by side
# Tiny models gain nothing from a second thread, and the tests run in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.tiny_model import make_tiny_model, make_tiny_reward_model  # noqa: E402 - it imports torch

if TYPE_CHECKING:
    from tests.support.node_example import NodeExample


# A service's server of metrics looks twice a second whether it is to end, and its end waits for that.
socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)

# Property tests that name no number of examples of their own try fewer in `make test` than in `make test-all`.
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=200, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

FOLDERS = ("e2e", "integration", "unit")
"""Of tests, the longest first, so that the workers end at about the same time."""
GIB_PER_WORKER = 6
"""Of memory; vLLM takes the most of it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Returns how many processes the tests run in: as many as there are cores, if the memory is enough for them."""
    num_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(num_gib / GIB_PER_WORKER)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts real vLLM first, then the files of the folders in their order."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        parts = item.path.parts
        folders = [index for index, folder in enumerate(FOLDERS) if folder in parts]
        return item.get_closest_marker("vllm") is None, min(folders, default=len(FOLDERS))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def no_logging_settings_of_other_tests() -> Iterator[None]:
    """A service that a test runs in its own process sets how all of the process logs."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random policy."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def tiny_reward_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random reward model; it shares its tokenizer with the tiny policy."""
    return make_tiny_reward_model(tmp_path_factory.mktemp("tiny_reward"))


@pytest.fixture(scope="session")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> "NodeExample":
    """The Node.js client with its dependencies, which npm fetches."""
    from tests.support.node_example import install_node_example

    return install_node_example(tmp_path_factory.mktemp("node_example"))


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    """Folder of the small real model, SmolLM2-135M-Instruct; fetched once and kept in the user's cache."""
    from rlhf_cli.models.fetch import fetch_small_model

    return fetch_small_model()

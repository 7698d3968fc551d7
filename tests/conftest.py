"""Fixtures that several tests share. The models are made once a session; a test that changes one loads its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from rlhf.process import sleep_at_barriers

sleep_at_barriers()  # tests run whole services side by side

from tests.support.tiny_model import make_tiny_model, make_tiny_reward_model  # noqa: E402 - it imports torch

if TYPE_CHECKING:
    from tests.support.node_example import NodeExample


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

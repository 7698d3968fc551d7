"""The names of what `rlhf eval` compares."""

from pathlib import Path

import pytest

from rlhf_cli.commands.targets import named_policies, named_rewards
from rlhf_cli.errors import UsageError


def test_one_service_needs_no_name() -> None:
    assert named_policies(["a:1"], None, None, None) == {"policy": "a:1"}
    assert named_policies(["a:1"], None, "b:1", None) == {"before": "a:1", "after": "b:1"}


def test_services_come_before_checkpoints_in_the_order_of_the_flags(tmp_path: Path) -> None:
    (tmp_path / "x=1").mkdir()
    policies = named_policies(["base=a:1", "ppo:0.1=b:1"], [f"dpo:0.3={tmp_path}/x=1"], None, None)
    assert list(policies.items()) == [("base", "a:1"), ("ppo:0.1", "b:1"), ("dpo:0.3", tmp_path / "x=1")]


@pytest.mark.parametrize(
    ("services", "checkpoints", "message"),
    [
        (["a:1", "x=b:1"], None, "--policy is 'a:1': of several policies each needs a name"),
        (["x=a:1", "x=b:1"], None, "--policy names 'x' twice"),
        (None, ["x=/no/such/folder"], "--checkpoint x is '/no/such/folder': no such directory"),
        (None, ["/tmp"], "--checkpoint is '/tmp': give a name and a folder"),
    ],
)
def test_what_cannot_be_told_apart_or_found_is_refused(
    services: list[str] | None, checkpoints: list[str] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        named_policies(services, checkpoints, None, None)


def test_rewards_have_names_and_one_may_go_without() -> None:
    assert named_rewards(["a:1"], None) == {"reward": "a:1"}
    assert named_rewards(["true=a:1", "proxy=runs/x=1/model"], None) == {"true": "a:1", "proxy": "runs/x=1/model"}

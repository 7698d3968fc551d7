"""rlhf.client gives every client by its name, and loads nothing before it is asked for one."""

import subprocess
import sys

import pytest

import rlhf.client
from rlhf.client import policy


def test_every_name_is_there():
    assert {"PolicyClient", "RewardClient", "ReferenceClient", "TrainerClient", "SyncRewardClient"} <= set(
        dir(rlhf.client)
    )
    assert set(rlhf.client.__all__) == set(rlhf.client._MODULE_OF)
    for name in dir(rlhf.client):
        assert getattr(rlhf.client, name) is not None
    assert rlhf.client.PolicyClient is policy.PolicyClient
    with pytest.raises(AttributeError, match="no attribute 'NoClient'"):
        _ = rlhf.client.NoClient


def test_the_import_alone_loads_no_grpc():
    script = "import sys, rlhf.client; assert not {'grpc', 'google.protobuf', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_is_loaded_without_torch():
    script = "import sys; from rlhf.client import RewardClient, PolicyClient; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)

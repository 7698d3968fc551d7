"""The probe's own protobuf bytes against the real messages, and what it prints and returns."""

import subprocess
import sys

import pytest
from grpc_health.v1 import health_pb2

from rlhf.serving.probe import LIVE, TARGET_VARIABLE, decode_status, encode_request, main


@pytest.mark.parametrize("name", ["", LIVE, "rlhf.v1.RewardService"])
def test_a_request_has_the_bytes_that_protobuf_writes(name):
    assert encode_request(name) == health_pb2.HealthCheckRequest(service=name).SerializeToString()


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_a_status_is_read_from_the_bytes_that_protobuf_writes(status):
    assert decode_status(health_pb2.HealthCheckResponse(status=status).SerializeToString()) == status


def test_a_service_that_is_not_there_is_one_clear_line_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setenv(TARGET_VARIABLE, "127.0.0.1:1")
    assert main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rlhf-probe: 127.0.0.1:1: UNAVAILABLE: ")


def test_without_a_target_it_says_how_to_give_one(capsys, monkeypatch):
    monkeypatch.delenv(TARGET_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert f"TARGET is missing: give host:port, or set {TARGET_VARIABLE}" in capsys.readouterr().err


def test_it_loads_neither_protobuf_nor_pydantic():
    script = "import sys, rlhf.serving.probe; assert not {'google.protobuf', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)

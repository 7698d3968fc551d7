"""What surrounds a call, however it came: the caller, the order of refusals, the log of slow calls, metrics."""

import asyncio

import grpc
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from rlhf.errors import InternalError, InvalidRequestError, NotReadyError, PermissionDeniedError, UnauthenticatedError
from rlhf.serving.auth import OpenDoor
from rlhf.serving.calls import Authorizer, CallCredentials, Caller, CallGuard, RpcMetrics, current_caller
from rlhf.serving.interceptors import host_of_peer

SOMEBODY = CallCredentials(claimed_name="somebody", host="10.0.0.7")


class Closed:
    """Lets in nobody who asks for more than to score."""

    def authorize(self, credentials: CallCredentials, scope: str) -> Caller:
        if credentials.authorization is None:
            raise UnauthenticatedError("who are you?")
        if scope != "score":
            raise PermissionDeniedError(f"not {scope}")
        return Caller("known", frozenset({"score"}))


class World:
    """A guard with its parts at hand."""

    def __init__(self, authorizer: Authorizer, slow_call_seconds: float = 0.0) -> None:
        self.reason: str | None = None
        self.registry = CollectorRegistry()
        self.guard = CallGuard(
            "x.Y",
            RpcMetrics(self.registry),
            lambda: self.reason,
            authorizer,
            {"Score": "score", "Load": "admin"},
            slow_call_seconds,
        )

    def count(self, method: str, code: grpc.StatusCode) -> float:
        labels = {"service": "x.Y", "method": method, "code": code.name}
        return self.registry.get_sample_value("rlhf_rpc_requests_total", labels) or 0.0


async def test_the_caller_is_known_during_its_call_and_not_outside():
    world = World(OpenDoor())
    assert current_caller() == Caller("", frozenset())

    async def name_in_call(name: str) -> str:
        async with world.guard.around("Score", CallCredentials(claimed_name=name)):
            await asyncio.sleep(0.01)
            return current_caller().name

    assert await asyncio.gather(name_in_call("a"), name_in_call("b")) == ["a", "b"]
    async with world.guard.around("Score", CallCredentials(host="10.0.0.7")) as call:
        assert (call.caller.name, call.request_id != "") == ("10.0.0.7", True)
    assert current_caller().name == ""


async def test_whoever_is_not_known_is_not_even_told_whether_the_service_is_ready():
    world = World(Closed())
    world.reason = "still loading"
    for authorization, method, error in [
        (None, "Score", UnauthenticatedError),
        ("Bearer x", "Load", PermissionDeniedError),
        ("Bearer x", "Score", NotReadyError),
    ]:
        with pytest.raises(error):
            async with world.guard.around(method, CallCredentials(authorization=authorization)):
                raise AssertionError("the body of a refused call must not run")
    assert world.count("Score", grpc.StatusCode.UNAUTHENTICATED) == 1
    assert world.count("Load", grpc.StatusCode.PERMISSION_DENIED) == 1
    assert world.count("Score", grpc.StatusCode.UNAVAILABLE) == 1


@pytest.mark.parametrize(
    ("raised", "seen", "code"),
    [
        (InvalidRequestError("mend it"), InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
        (ZeroDivisionError("secret words"), InternalError, grpc.StatusCode.INTERNAL),
        (asyncio.CancelledError(), asyncio.CancelledError, grpc.StatusCode.CANCELLED),
    ],
)
async def test_what_the_body_raises_is_counted_and_a_fault_says_no_more_than_its_class(raised, seen, code):
    world = World(OpenDoor())
    with pytest.raises(seen) as error:
        async with world.guard.around("Score", SOMEBODY, "id-1"):
            raise raised
    assert world.count("Score", code) == 1
    assert "secret words" not in str(error.value)
    if seen is InternalError:
        assert str(error.value) == "internal error (ZeroDivisionError); the service's log has the details under " + (
            "request_id id-1"
        )


async def test_only_a_slow_call_is_logged_with_who_called_and_how_many_items():
    slow, fast = World(OpenDoor(), slow_call_seconds=0.01), World(OpenDoor(), slow_call_seconds=60)
    with capture_logs() as logs:
        async with slow.guard.around("Score", SOMEBODY) as call:
            call.num_items = 3
            await asyncio.sleep(0.02)
        async with fast.guard.around("Score", SOMEBODY, num_items=3):
            await asyncio.sleep(0.02)
    (entry,) = [log for log in logs if log["event"] == "slow call"]
    assert (entry["code"], entry["items"]) == ("OK", 3)
    assert entry["seconds"] >= 0.02


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:[::1]:4711", "::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:", "local"),
        ("", "local"),
    ],
)
def test_the_host_is_the_peers_address_without_its_port(peer, host):
    assert host_of_peer(peer) == host

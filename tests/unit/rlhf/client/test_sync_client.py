"""The client for threads, against a service in an event loop of its own."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf.client import ComparisonItem, Reward, ScoreItem
from rlhf.client.sync import LoopThread, SyncRewardClient
from rlhf.errors import NotReadyError
from tests.support.fake_text_reward import FakeTextReward


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("service")
    yield thread
    thread.close()


@pytest.fixture
def service(thread: LoopThread) -> Iterator[FakeTextReward]:
    async def make() -> FakeTextReward:
        fake = FakeTextReward(max_items=2)
        await fake.start()
        return fake

    fake = thread.run(make())
    yield fake
    thread.run(fake.kill())


def text(completion: str) -> ScoreItem:
    return ScoreItem.text("a prompt", completion)


def test_every_method_waits_for_its_answer(service: FakeTextReward):
    progress: list[int] = []
    with SyncRewardClient(service.target, caller="thread") as client:
        assert client.is_serving()
        assert client.score([text("ab")]).results == [Reward("", 2.0)]
        scores = client.score_many([text("a"), text("bb"), text("ccc")], on_progress=lambda n, _: progress.append(n))
        assert [result.reward for result in scores.results if isinstance(result, Reward)] == [1, 2, 3]
        assert progress == [2, 3]
        assert len(client.compare([ComparisonItem(text("a"), text("b"))]).results) == 1
        assert client.load_model(["v2"]).previous_model_version == "v1"
        assert client.get_model().model_version == "v2"
        assert client.get_report()[0].caller == "me"
    assert service.callers == ["thread"] * 3


def test_calls_of_several_threads_run_side_by_side(service: FakeTextReward, thread: LoopThread):
    release = asyncio.Event()
    service.holds.extend([release] * 4)

    async def release_once_all_are_there() -> None:
        for _ in range(4):
            await service.arrivals.acquire()
        release.set()

    with SyncRewardClient(service.target) as client, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.score, [text("x" * length)]) for length in (1, 2, 3, 4)]
        thread.run(release_once_all_are_there())
        assert [call.result().results for call in calls] == [[Reward("", length)] for length in (1.0, 2.0, 3.0, 4.0)]


def test_a_failure_is_raised_in_the_calling_thread(service: FakeTextReward):
    with SyncRewardClient("127.0.0.1:1") as client, pytest.raises(NotReadyError, match=r"127\.0\.0\.1:1"):
        client.score([text("x")], deadline_seconds=0.2)


def test_a_closed_client_says_so(service: FakeTextReward):
    client = SyncRewardClient(service.target)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get_model()


def test_a_callback_that_would_wait_for_itself_says_so(service: FakeTextReward):
    with SyncRewardClient(service.target) as client, pytest.raises(RuntimeError, match="cannot wait for itself"):
        client.score_many([text("x")], on_progress=lambda *_: client.get_model() and None)


def test_a_client_that_is_not_closed_ends_with_its_process(service: FakeTextReward):
    script = (
        "from rlhf.client.sync import SyncRewardClient\n"
        f"client = SyncRewardClient({service.target!r})\n"
        "print(client.get_model().model_version)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "v1\n", "")

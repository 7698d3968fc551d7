"""A fake reward service in an event loop of its own, for adapters that are called without one."""

from collections.abc import Iterator

import pytest
from fake_text_reward import FakeTextReward

from rlhf_services.clients.loop_thread import LoopThread


@pytest.fixture
def service_elsewhere() -> Iterator[FakeTextReward]:
    thread = LoopThread("service")

    async def make() -> FakeTextReward:
        fake = FakeTextReward()
        await fake.start()
        return fake

    fake = thread.run(make())
    yield fake
    thread.run(fake.kill())
    thread.close()

"""A fake reward service in an event loop of its own, for adapters that are called without one."""

from collections.abc import Iterator

import pytest

from rlhf.client.sync import LoopThread
from tests.support.fake_text_reward import FakeTextReward


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

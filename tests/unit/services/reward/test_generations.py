"""Serving other weights: calls keep the model they began with, the old one then goes, a failure changes nothing."""

import asyncio
from collections.abc import Sequence

import pytest

from rlhf.client.reward_types import LoadedModel
from rlhf.errors import PreconditionError
from services.reward.loading import Candidate
from services.reward.scorers.config import scorer_config
from services.reward.scorers.scorer import ScorerInfo
from tests.support.number_scorer import NumberScorer, loaded, text, until


class Shelf:
    """Hands out scorers by path, in place of a loader of checkpoints."""

    def __init__(self, **scorers: NumberScorer) -> None:
        self.scorers = scorers
        self.gate = asyncio.Event()
        self.gate.set()
        self.kept: list[str] = []

    async def load(self, paths: Sequence[str], component: str, present: ScorerInfo) -> Candidate:
        await self.gate.wait()
        if paths[0] not in self.scorers:
            raise PreconditionError("the model does not load")
        return Candidate(self.scorers[paths[0]], scorer_config(kind="length", tokenizer=paths[0]), 0.25)

    def keep(self, candidate: Candidate) -> None:
        self.kept.append(candidate.config.tokenizer)


async def test_calls_keep_the_model_they_began_with():
    old, new = NumberScorer("v1"), NumberScorer("v2", factor=10)
    async with loaded(old, loader=Shelf(new=new)) as (core, registry):
        old.gate.clear()
        running = asyncio.create_task(core.score([text("1")]))
        await old.wait_until_running()
        waiting = asyncio.create_task(core.score([text("2")]))
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 1)
        assert await core.load_model(["new"]) == LoadedModel("v2", "v1", 0.25)
        assert core.info.version == "v2"
        after = await core.score([text("3")])
        assert (after.outcomes, after.model_version) == ([30.0], "v2")
        assert not old.closed.is_set()
        assert registry.get_sample_value("rlhf_reward_queue_items") == 1  # the old one's are counted too
        old.gate.set()
        for call, reward in ((running, 1.0), (waiting, 2.0)):
            answer = await call
            assert (answer.outcomes, answer.model_version) == ([reward], "v1")
        await asyncio.to_thread(old.closed.wait, 10)
        assert old.closed.is_set()
        assert not new.closed.is_set()
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": "ok"}) == 1
    assert new.closed.is_set()


async def test_a_repeat_after_the_swap_gets_the_answer_and_version_it_had():
    async with loaded(NumberScorer("v1"), loader=Shelf(new=NumberScorer("v2", factor=10))) as (core, _):
        before = await core.score([text("1")], request_id="a")
        await core.load_model(["new"])
        assert await core.score([text("1")], request_id="a") == before
        assert (await core.score([text("1")], request_id="b")).outcomes == [10.0]


async def test_one_load_at_a_time_and_the_service_answers_meanwhile():
    shelf = Shelf(new=NumberScorer("v2"), other=NumberScorer("v3"))
    async with loaded(NumberScorer("v1"), loader=shelf) as (core, _):
        shelf.gate.clear()
        load = asyncio.create_task(core.load_model(["new"]))
        await asyncio.sleep(0)
        with pytest.raises(PreconditionError, match="another model is being loaded"):
            await core.load_model(["other"])
        assert (await core.score([text("1")])).model_version == "v1"
        await core.check()
        shelf.gate.set()
        await load
        assert (await core.load_model(["other"])).previous_model_version == "v2"
    assert shelf.kept == ["new", "other"]


async def test_a_load_that_fails_leaves_the_present_model_and_may_be_followed_by_another():
    shelf = Shelf(new=NumberScorer("v2"))
    async with loaded(NumberScorer("v1"), loader=shelf) as (core, registry):
        with pytest.raises(PreconditionError, match="does not load"):
            await core.load_model(["nowhere"])
        assert (await core.score([text("1")])).model_version == "v1"
        await core.load_model(["new"])
        assert core.info.version == "v2"
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": "failed"}) == 1
    assert shelf.kept == ["new"]


async def test_a_caller_that_leaves_does_not_stop_the_load():
    shelf = Shelf(new=NumberScorer("v2"))
    async with loaded(NumberScorer("v1"), loader=shelf) as (core, _):
        shelf.gate.clear()
        load = asyncio.create_task(core.load_model(["new"]))
        await asyncio.sleep(0)
        load.cancel()
        await asyncio.wait([load])
        shelf.gate.set()
        await until(lambda: core.info.version == "v2")


async def test_without_a_loader_nothing_is_loaded():
    async with loaded(NumberScorer()) as (core, _):
        with pytest.raises(PreconditionError, match=r"set models\.allowed_roots"):
            await core.load_model(["new"])


async def test_the_service_ends_while_an_old_model_still_runs():
    old = NumberScorer("v1")
    async with loaded(old, loader=Shelf(new=NumberScorer("v2"))) as (core, _):
        old.gate.clear()
        call = asyncio.create_task(core.score([text("1")]))
        await old.wait_until_running()
        await core.load_model(["new"])
        await asyncio.wait_for(core.close(), 5)
        old.gate.set()
        await asyncio.wait([call])
    assert old.closed.is_set()


async def test_no_call_fails_and_every_version_fits_its_reward_while_models_are_swapped():
    scorers = {f"v{n}": NumberScorer(f"v{n}", factor=n) for n in range(2, 6)}
    async with loaded(NumberScorer("v1"), loader=Shelf(**scorers)) as (core, _):
        answers = []

        async def ask(number: int) -> None:
            for _ in range(30):
                answers.append((number, await core.score([text(str(number))])))

        async def swap() -> None:
            for version in scorers:
                await asyncio.sleep(0.01)
                await core.load_model([version])

        await asyncio.gather(swap(), *(ask(number) for number in range(1, 9)))
    assert len(answers) == 240
    for number, answer in answers:
        assert answer.outcomes == [number * int(answer.model_version[1:])]
    assert all(scorer.closed.is_set() for scorer in scorers.values())

import asyncio
from contextlib import suppress

import pytest

from rlhf.client.breaker import CircuitBreaker
from rlhf.errors import InternalError, InvalidRequestError, NotReadyError, OverloadedError


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failures_to_open=3, open_seconds=10, clock=clock)


def make_call(breaker: CircuitBreaker, error: BaseException | None = None) -> bool:
    """Returns whether the call went through; it ends with the error, if there is one."""
    went_through = False
    with suppress(NotReadyError if error is None else type(error)), breaker.guarding("reward service at here:1"):
        went_through = True
        if error is not None:
            raise error
    return went_through


AWAY = NotReadyError("away")


def test_it_opens_after_so_many_failures_in_a_row(breaker: CircuitBreaker):
    assert [make_call(breaker, AWAY), make_call(breaker, InternalError("broken"))] == [True, True]
    assert make_call(breaker)  # a success: counting starts again
    assert [make_call(breaker, AWAY) for _ in range(3)] == [True, True, True]
    assert breaker.state == "open"
    with pytest.raises(NotReadyError, match="here:1: 3 calls in a row failed, so none is made at present"):
        breaker.guarding("reward service at here:1").__enter__()


@pytest.mark.parametrize("error_class", [InvalidRequestError, OverloadedError])
def test_a_refusal_is_an_answer(breaker: CircuitBreaker, error_class: type[Exception]):
    for _ in range(2):
        make_call(breaker, AWAY)
    make_call(breaker, error_class("refused"))
    make_call(breaker, AWAY)
    assert breaker.state == "closed"


def test_after_a_while_one_call_is_let_through_at_a_time(breaker: CircuitBreaker, clock: Clock):
    for _ in range(3):
        make_call(breaker, AWAY)
    clock.now = 9.9
    assert not make_call(breaker)
    clock.now = 10.0
    assert breaker.state == "half-open"
    with breaker.guarding("here"):
        assert not make_call(breaker)
    assert breaker.state == "closed"
    assert make_call(breaker)


def test_a_trial_that_fails_opens_it_again_for_as_long(breaker: CircuitBreaker, clock: Clock):
    for _ in range(3):
        make_call(breaker, AWAY)
    clock.now = 10.0
    assert make_call(breaker, AWAY)
    clock.now = 19.9
    assert not make_call(breaker)
    clock.now = 20.0
    assert make_call(breaker)
    assert breaker.state == "closed"


def test_a_cancelled_trial_leaves_the_trial_to_the_next_call(breaker: CircuitBreaker, clock: Clock):
    for _ in range(3):
        make_call(breaker, AWAY)
    clock.now = 10.0
    assert make_call(breaker, asyncio.CancelledError())
    assert breaker.state == "half-open"
    assert make_call(breaker)
    assert breaker.state == "closed"


def test_it_refuses_to_open_after_no_failure():
    with pytest.raises(ValueError, match="failures_to_open is 0; give at least 1"):
        CircuitBreaker(failures_to_open=0)

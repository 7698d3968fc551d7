"""A circuit breaker: after several failures in a row calls fail at once for a while, then one may try."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rlhf.errors import InternalError, NotReadyError, ServiceError

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Keeps callers from waiting for a service that is known to be away. For the calls of one event loop.

    Closed: all calls go through. After `failures_to_open` failures in a row it opens: calls fail at once. After
    `open_seconds` it is half-open: one call goes through as a trial, the others still fail at once; the trial's success
    closes it, its failure opens it again. Only what says that the service is away or broken is a failure
    (NotReadyError, InternalError): a service that refuses a request is there.
    """

    def __init__(
        self,
        *,
        failures_to_open: int = 5,
        open_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures_to_open < 1:
            raise ValueError(f"failures_to_open is {failures_to_open}; give at least 1")
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock
        self._num_failures = 0
        self._opened_at: float | None = None
        self._on_trial = False

    @property
    def state(self) -> State:
        """How the next call would be treated."""
        if self._opened_at is None:
            return "closed"
        return "half-open" if self._clock() >= self._opened_at + self._open_seconds else "open"

    @contextmanager
    def guarding(self, place: str) -> Iterator[None]:
        """Wraps one call. Raises: NotReadyError at once, naming the place, if the call may not be made now."""
        trial = self._admit(place)
        try:
            yield
        except (NotReadyError, InternalError):
            self._fail()
            raise
        except ServiceError:
            self._succeed()  # a refusal is an answer
            raise
        else:
            self._succeed()
        finally:
            # A cancelled trial proves nothing: the next call is the trial.
            self._on_trial = self._on_trial and not trial

    def _admit(self, place: str) -> bool:
        """Returns whether the call is the trial of a half-open breaker."""
        state = self.state
        if state == "closed":
            return False
        if state == "open" or self._on_trial:
            raise NotReadyError(
                f"{place}: {self._num_failures} calls in a row failed, so none is made at present; the next try is due "
                f"within {self._open_seconds:g} s"
            )
        self._on_trial = True
        return True

    def _succeed(self) -> None:
        self._num_failures = 0
        self._opened_at = None

    def _fail(self) -> None:
        self._num_failures += 1
        if self._num_failures >= self._failures_to_open:
            self._opened_at = self._clock()

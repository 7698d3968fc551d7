"""How fast work goes, and when the refused come again."""

import pytest

from rlhf.serving.batching.queue import Pace


def test_the_pace_is_that_of_the_latest_runs():
    pace = Pace()
    assert pace.seconds_for(100) is None
    pace.observe(100, 1.0)
    assert pace.seconds_for(50) == 0.5
    pace.observe(10, 1.1)
    # 0.9 * 100 + 10 tokens in 0.9 * 1 + 1.1 seconds: 50 tokens/s.
    assert pace.seconds_for(100) == pytest.approx(2.0)


def test_before_anything_was_measured_the_refused_come_again_in_a_second():
    assert Pace().retry_after(10, 1000, now=5.0) == 1.0


def test_the_refused_come_again_one_after_the_other_as_room_is_made():
    pace = Pace()
    pace.observe(100, 1.0)
    # 20 tokens are 0.2 s of work. A second later the first two have had their turns.
    assert pace.retry_after(20, 1000, now=5.0) == pytest.approx(0.2)
    assert pace.retry_after(20, 1000, now=5.0) == pytest.approx(0.4)
    assert pace.retry_after(20, 1000, now=5.1) == pytest.approx(0.5)
    assert pace.retry_after(20, 1000, now=6.1) == pytest.approx(0.2)


def test_nobody_is_sent_away_for_longer_than_four_queues():
    pace = Pace()
    pace.observe(100, 1.0)
    # The queue is 0.5 s of work, so a caller that never stops asking drives the others away for 2 s, not for ever.
    hints = [pace.retry_after(20, 50, now=5.0) for _ in range(100)]
    assert max(hints) == pytest.approx(2.0)


def test_a_short_queue_does_not_make_callers_ask_without_end():
    pace = Pace()
    pace.observe(1_000_000, 1.0)
    assert pace.retry_after(20, 20, now=5.0) == 0.01

"""What the batches' metrics tell of padding, tokens and the queue."""

import pytest
from prometheus_client import CollectorRegistry

from rlhf.serving.batching.limits import BatchMetrics


def test_padding_is_what_a_padded_batch_holds_beyond_its_tokens():
    registry = CollectorRegistry()
    # Three items, padded to 10 each: 30 places, 24 tokens, 6 of 30 padding.
    BatchMetrics("x", registry).observe([10, 8, 6], seconds=0.5)
    assert registry.get_sample_value("x_padding_ratio_sum") == pytest.approx(0.2)
    assert registry.get_sample_value("x_tokens_total") == 24
    assert registry.get_sample_value("x_batch_items_sum") == 3
    assert registry.get_sample_value("x_model_seconds_sum") == 0.5


def test_a_model_that_does_not_pad_has_no_padding():
    registry = CollectorRegistry()
    BatchMetrics("x", registry).observe([10, 8, 6], seconds=0.5, pads=False)
    assert registry.get_sample_value("x_padding_ratio_sum") == 0
    assert registry.get_sample_value("x_padding_ratio_count") == 1
    assert registry.get_sample_value("x_tokens_total") == 24


def test_the_queue_is_read_when_it_is_asked_for():
    registry = CollectorRegistry()
    waiting = [1, 2]
    BatchMetrics("x", registry).watch_queue(lambda: len(waiting), limit=7)
    waiting.append(3)
    assert registry.get_sample_value("x_queue_items") == 3
    assert registry.get_sample_value("x_queue_limit_items") == 7

"""What gRPC adds around a call: an error's message that fits into a status, whatever the caller sent."""

from urllib.parse import quote

from rlhf.serving.interceptors import MAX_MESSAGE_BYTES, clipped


def test_a_message_of_ordinary_length_is_sent_whole():
    assert clipped("items is empty; send at least one") == "items is empty; send at least one"
    assert clipped("x" * MAX_MESSAGE_BYTES) == "x" * MAX_MESSAGE_BYTES


def test_a_long_message_keeps_field_and_remedy_and_loses_the_middle_of_the_value():
    message = clipped(f"tokenizer_digest is '{'x' * 10_000}'; send another")
    assert message.startswith("tokenizer_digest is 'xxx")
    assert "xxx [...] xxx" in message
    assert message.endswith("xxx'; send another")


def test_no_message_outgrows_the_8_kib_of_metadata_that_a_client_takes():
    # gRPC writes each byte that is not printable ASCII as three.
    for character in ("x", "\n", "é", "漢", "🎲"):
        assert len(quote(clipped(character * 100_000))) < 8192 - 1024

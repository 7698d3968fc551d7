"""Sparse patches of one tensor: the bytes as policy.proto describes them, every bit pattern, and every broken frame."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.errors import InvalidRequestError
from rlhf.models.sparse_patch import BLOCK_ELEMENTS, MAX_ELEMENTS, TensorPatch, decode, diff, new_values
from rlhf.weights import PatchPart

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def tensor_of_bits(bits: Sequence[int], dtype: str = "BF16") -> Tensor:
    """A tensor of the elements with the given bits."""
    signed = np.array(bits, dtype=f"u{WIDTHS[dtype]}").view(f"i{WIDTHS[dtype]}").tolist()
    return torch.tensor(signed, dtype={2: torch.int16, 4: torch.int32}[WIDTHS[dtype]]).view(TORCH_DTYPES[dtype])


def bits_of(tensor: Tensor) -> list[int]:
    """The bits of its elements, as unsigned numbers."""
    return [int(each) for each in tensor.reshape(-1).view(torch.uint8).numpy().view(f"u{tensor.element_size()}")]


def patched(old: Tensor, patch: TensorPatch, dtype: str = "BF16") -> Tensor:
    """What a receiver makes of the old tensor."""
    indices, steps = decode(patch.part, patch.frame, dtype, old.numel(), name="w")
    result = old.clone().reshape(-1)
    result[indices] = new_values(result[indices], steps)
    return result.reshape(old.shape)


def oracle(old: Sequence[int], raw: bytes, count: int, width: int) -> list[int]:
    """What policy.proto says a frame's content makes of an element's bits, a number at a time, in plain Python."""
    result, position = list(old), -1
    for k in range(count):
        gap = sum(raw[plane * count + k] << (8 * plane) for plane in range(4))
        zigzag = sum(raw[(4 + plane) * count + k] << (8 * plane) for plane in range(width))
        step = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
        position += gap + 1
        result[position] = (old[position] + step) % 2 ** (8 * width)
    return result


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    """A type, and the bits of two tensors that are alike in some of their elements."""
    dtype = draw(st.sampled_from(sorted(WIDTHS)))
    number = st.integers(0, 2 ** (8 * WIDTHS[dtype]) - 1)
    old = draw(st.lists(number, max_size=40))
    return dtype, old, [draw(st.one_of(st.just(bits), number)) for bits in old]


@given(two_versions())
@settings(max_examples=200, deadline=None)
def test_a_patch_makes_the_new_bits_of_the_old_ones_as_the_oracle_does(versions: tuple[str, list[int], list[int]]):
    dtype, old, new = versions
    patch = diff(tensor_of_bits(old, dtype), tensor_of_bits(new, dtype))
    assert patch.changed_count == sum(a != b for a, b in zip(old, new, strict=True))
    assert bits_of(patched(tensor_of_bits(old, dtype), patch, dtype)) == new
    raw = zstandard.decompress(patch.frame) if patch.frame else b""
    assert oracle(old, raw, patch.changed_count, WIDTHS[dtype]) == new


def test_the_bytes_of_a_patch_are_those_worked_by_hand():
    patch = diff(tensor_of_bits([10, 20, 30, 40, 50]), tensor_of_bits([10, 22, 30, 39, 50]))
    # Elements 1 and 3: one unchanged before each. Steps +2 and -1 are 4 and 1 in zigzag form.
    assert zstandard.decompress(patch.frame) == bytes.fromhex("0101 0000 0000 0000  0401 0000")
    assert patch.part == PatchPart(2, len(patch.frame))


def test_a_gap_takes_four_planes_and_a_step_of_float32_four():
    old = torch.zeros(70_000, dtype=torch.float32)
    new = old.clone()
    new[69_999] = 1.0  # bits 3f800000 = 1065353216; in zigzag form twice that: 7f000000
    patch = diff(old, new)
    # 69999 unchanged ones: 1116f
    assert zstandard.decompress(patch.frame) == bytes.fromhex("6f 11 01 00  00 00 00 7f")
    assert torch.equal(patched(old, patch, "F32"), new)


def test_steps_wrap_around_in_both_directions():
    old, new = tensor_of_bits([0xFFFF, 0, 0, 0x8000]), tensor_of_bits([0, 0xFFFF, 0x8000, 0])
    patch = diff(old, new)
    # +1, -1, and twice -32768, which is +32768 too: 2, 1, 65535, 65535.
    assert zstandard.decompress(patch.frame)[16:] == bytes.fromhex("0201ffff 0000ffff")
    assert bits_of(patched(old, patch)) == bits_of(new)


def test_bits_count_not_values():
    # 0.0 to -0.0, one NaN to another, infinity to NaN; the fourth is the same NaN as before.
    old, new = tensor_of_bits([0x0000, 0x7FC0, 0x7F80, 0x7FC1]), tensor_of_bits([0x8000, 0x7FC1, 0xFFFF, 0x7FC1])
    patch = diff(old, new)
    assert patch.changed_count == 3
    assert bits_of(patched(old, patch)) == bits_of(new)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3)])
def test_a_patch_of_nothing_is_empty_whatever_the_shape(shape: tuple[int, ...]):
    tensor = torch.ones(shape, dtype=torch.bfloat16)
    patch = diff(tensor, tensor.clone())
    assert patch == TensorPatch(0, b"")
    indices, steps = decode(patch.part, b"", "BF16", tensor.numel(), name="w")
    assert (indices.tolist(), steps.tolist()) == ([], [])
    assert indices.dtype == torch.int64
    assert steps.dtype == torch.int16


def test_a_scalar_can_change():
    old, new = torch.tensor(1.0), torch.tensor(2.0)
    assert torch.equal(patched(old, diff(old, new), "F32"), new)


@pytest.mark.parametrize("numel", [1, 3, 4, 7, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1])
def test_the_last_element_of_any_length_is_seen(numel: int):
    old = torch.zeros(numel, dtype=torch.bfloat16)
    new = old.clone()
    new[-1] = 1
    assert decode(*_sent(old, new), numel, name="w")[0].tolist() == [numel - 1]


def test_changes_on_both_sides_of_a_block_are_seen():
    old = torch.zeros(3 * BLOCK_ELEMENTS + 5, dtype=torch.bfloat16)
    new = old.clone()
    changed = [0, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS, 3 * BLOCK_ELEMENTS + 4]
    new[changed] = 1
    assert decode(*_sent(old, new), len(old), name="w")[0].tolist() == changed


def test_everything_may_change():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (2, 50_000), generator=generator, dtype=torch.int16)
    old, new = bits[0].view(torch.bfloat16), (bits[0] + 1).view(torch.bfloat16)
    patch = diff(old, new)
    assert patch.changed_count == 50_000
    assert len(patch.frame) < 100  # gaps of 0 and steps of 2
    assert bits_of(patched(old, patch)) == bits_of(new)
    new = bits[1].view(torch.bfloat16)
    assert bits_of(patched(old, diff(old, new))) == bits_of(new)


def test_a_change_of_one_percent_by_a_little_costs_less_than_two_bytes_an_element():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(1_000_000, generator=generator).to(torch.bfloat16)
    bits = old.clone().view(torch.int16)
    chosen = torch.randperm(1_000_000, generator=generator)[:10_000]
    bits[chosen] += torch.where(torch.rand(10_000, generator=generator) < 0.5, -1, 1).to(torch.int16)
    patch = diff(old, bits.view(torch.bfloat16))
    assert patch.changed_count == 10_000
    # A gap of 100 on average holds log2(100 e) = 8.1 bits, the sign of a step 1: 1.14 bytes.
    assert len(patch.frame) < 20_000


@pytest.mark.parametrize("dtype", sorted(WIDTHS))
def test_two_hundred_patches_in_a_row_end_at_the_senders_bits(dtype: str):
    generator = torch.Generator().manual_seed(0)
    sender = torch.randn(3_000, generator=generator).to(TORCH_DTYPES[dtype])
    receiver = sender.clone()
    for turn in range(200):
        new = sender.clone()
        chosen = torch.rand(3_000, generator=generator) < (0.0, 0.01, 0.3, 1.0)[turn % 4]
        new[chosen] = (torch.randn(3_000, generator=generator) * 10.0 ** (turn % 9 - 4)).to(new.dtype)[chosen]
        receiver = patched(receiver, diff(sender, new), dtype)
        sender = new
    assert bits_of(receiver) == bits_of(sender)


def _sent(old: Tensor, new: Tensor) -> tuple[PatchPart, bytes, str]:
    patch = diff(old, new)
    return patch.part, patch.frame, "BF16"


def _frame(gaps: Sequence[int], steps: Sequence[int], **options: bool) -> bytes:
    """A frame of bfloat16 elements by its numbers."""
    raw = b"".join(bytes(gap >> (8 * plane) & 255 for gap in gaps) for plane in range(4))
    raw += b"".join(bytes(step >> (8 * plane) & 255 for step in steps) for plane in range(2))
    return zstandard.ZstdCompressor(**options).compress(raw)


GOOD = _frame([1, 1], [4, 1])


@pytest.mark.parametrize(
    ("count", "frame", "fault"),
    [
        (2, GOOD[:-1], "does not unpack"),
        (2, GOOD[:3], "does not unpack"),
        (2, b"\0" * 20, "does not unpack"),
        (2, b"\0" + GOOD, "does not unpack"),
        (2, GOOD + b"\0", "does not unpack"),
        (2, GOOD + GOOD, "does not unpack"),
        (1, GOOD, "12 bytes unpacked; its changed_count needs 6"),
        (3, GOOD, "12 bytes unpacked; its changed_count needs 18"),
        (2, b"", "2 changes in 0 bytes"),
        (0, GOOD, "0 changes in"),
        (-1, GOOD, "changed_count of -1; it has 5 elements"),
        (6, GOOD, "changed_count of 6; it has 5 elements"),
        (2, _frame([1, 3], [4, 1]), "changes elements past its end; it has 5"),
        (1, _frame([2**32 - 1], [4]), "changes elements past its end; it has 5"),
        (2, _frame([1, 1], [4, 0]), "step of 0"),
    ],
)
def test_a_frame_that_is_not_such_a_patch_is_refused_by_its_fault(count: int, frame: bytes, fault: str):
    with pytest.raises(InvalidRequestError, match=f"the patch of tensor 'model.w' .*{fault}"):
        decode(PatchPart(count, len(frame)), frame, "BF16", 5, name="model.w")


def test_a_frame_of_another_length_than_announced_is_refused():
    with pytest.raises(InvalidRequestError, match=rf"frame of {len(GOOD)} bytes; patch_bytes says {len(GOOD) + 1}"):
        decode(PatchPart(2, len(GOOD) + 1), GOOD, "BF16", 5, name="w")


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(says_its_size: bool):
    bomb = zstandard.ZstdCompressor(write_content_size=says_its_size).compress(bytes(200_000_000))
    assert len(bomb) < 30_000
    with pytest.raises(InvalidRequestError, match=r"bytes unpacked|does not unpack to 12 bytes"):
        decode(PatchPart(2, len(bomb)), bomb, "BF16", 5, name="w")


def test_a_frame_that_lies_about_its_size_is_refused():
    honest = zstandard.ZstdCompressor().compress(bytes(250))
    (size_at,) = (k for k in range(4, 8) if honest[k] == 250)
    lying = honest[:size_at] + b"\x0c" + honest[size_at + 1 :]
    assert zstandard.frame_content_size(lying) == 12
    with pytest.raises(InvalidRequestError, match="does not unpack to 12 bytes"):
        decode(PatchPart(2, len(lying)), lying, "BF16", 5, name="w")


def test_a_frame_need_not_say_its_size():
    frame = _frame([1, 1], [4, 1], write_content_size=False)
    assert zstandard.frame_content_size(frame) == -1
    assert decode(PatchPart(2, len(frame)), frame, "BF16", 5, name="w")[0].tolist() == [1, 3]


@given(st.binary(max_size=60), st.integers(-1, 8))
@settings(max_examples=300, deadline=None)
def test_whatever_arrives_is_decoded_or_refused(junk: bytes, count: int):
    for frame in (junk, GOOD[: len(junk) % len(GOOD)] + junk, zstandard.ZstdCompressor().compress(junk)):
        try:
            indices, steps = decode(PatchPart(count, len(frame)), frame, "BF16", 8, name="w")
        except InvalidRequestError:
            continue
        found = indices.tolist()
        assert len(found) == len(steps) == count
        assert found == sorted(set(found))
        assert all(0 <= index < 8 for index in found)
        assert steps.all()


def test_a_tensor_too_long_for_gaps_of_four_bytes_is_no_matter_of_patches():
    endless = torch.zeros(1, dtype=torch.bfloat16).expand(MAX_ELEMENTS + 1)
    with pytest.raises(ValueError, match="cannot be patched"):
        diff(endless, endless)
    with pytest.raises(InvalidRequestError, match="push all weights"):
        decode(PatchPart(2, len(GOOD)), GOOD, "BF16", MAX_ELEMENTS + 1, name="w")


def test_values_near_each_other_take_small_steps_in_every_type():
    for value, dtype in ((1.0, "BF16"), (1.0, "F16"), (1.0, "F32")):
        old = torch.tensor([value]).to(TORCH_DTYPES[dtype])
        new = torch.nextafter(old, torch.tensor([2.0], dtype=old.dtype))
        patch = diff(old, new)
        raw = zstandard.decompress(patch.frame)
        assert struct.unpack("<I", raw[:4]) == (0,)
        assert raw[4:] == b"\x02" + bytes(WIDTHS[dtype] - 1)  # one step up

"""Views of a running model's parameters, recorded from loaders that do what vLLM's do."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from services.policy.vllm.views import View, record_views, storages

Weights = Iterator[tuple[str, Tensor]]


def checkpoint() -> list[tuple[str, Tensor]]:
    """q is 0 to 5 in two rows of three, k 10 to 15 likewise, norm is 20 to 22."""
    return [
        ("q", torch.arange(6.0).view(2, 3)),
        ("k", torch.arange(10.0, 16.0).view(2, 3)),
        ("norm", torch.arange(20.0, 23.0)),
    ]


def record(
    load: Callable[[Weights], object], *parameters: Tensor, sharded: bool = False
) -> dict[str, tuple[View, ...]]:
    return record_views(load, checkpoint(), storages(parameters), sharded=sharded)


def write(views: tuple[View, ...], **new: float) -> None:
    """Sets elements by their flat index: i4=7 makes element 4 a 7."""
    indices = torch.tensor([int(name[1:]) for name in new])
    for view in views:
        view.write(indices, torch.tensor(list(new.values())))


def test_an_element_is_written_where_the_loader_puts_it_in_a_fused_and_padded_parameter():
    fused, norm = torch.zeros(6, 3), torch.zeros(3)  # rows 0 and 1 are q's, 2 and 3 k's, the last two padding

    def load(weights: Weights) -> None:
        rows = {"q": fused[0:2], "k": fused[2:4], "norm": norm}
        for name, tensor in weights:
            rows[name].copy_(tensor)
        fused[4:].fill_(0)

    views = record(load, fused, norm)
    assert not fused.any(), "recording does not load what it has seen"
    write(views["k"], i0=5.0, i4=7.0)  # row 0 column 0, and row 1 column 1, of k
    write(views["norm"], i2=9.0)
    expected = torch.zeros(6, 3)
    expected[2, 0], expected[3, 1] = 5.0, 7.0
    assert torch.equal(fused, expected)
    assert norm.tolist() == [0, 0, 9]


def test_a_worker_that_holds_the_second_row_of_a_tensor_takes_its_elements_alone():
    live = torch.zeros(1, 3)
    views = record(lambda weights: live.copy_(next(weights)[1].narrow(0, 1, 1)), live, sharded=True)
    write(views["q"], i0=1.0, i2=2.0, i3=3.0, i5=4.0)
    assert live.tolist() == [[3, 0, 4]]


@pytest.mark.parametrize(("start", "expected"), [(0, [[1, 0], [3, 0]]), (1, [[0, 2], [0, 4]])])
def test_a_worker_that_holds_two_of_three_columns_takes_their_elements_alone(start, expected):
    live = torch.zeros(2, 2)
    views = record(lambda weights: live.copy_(next(weights)[1].narrow(1, start, 2)), live, sharded=True)
    write(views["q"], i0=1.0, i2=2.0, i3=3.0, i5=4.0)  # columns 0 and 2 of both rows
    assert live.tolist() == expected


def test_a_tensor_that_the_loader_copies_twice_is_written_twice_and_in_the_parameters_type():
    first, second = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)

    def load(weights: Weights) -> None:
        tensor = next(weights)[1]
        first.copy_(tensor)
        second.copy_(tensor)

    write(record(load, first, second)["q"], i1=0.1)
    assert first.view(-1)[1] == 0.1
    assert second.view(-1)[1] == torch.tensor(0.1).double()


@pytest.mark.parametrize("way", ["converted", "transposed", "elsewhere", "half"])
def test_a_tensor_that_is_not_copied_as_it_is_has_no_view_and_is_loaded_in_truth(way):
    live, other = torch.zeros(2, 3), torch.zeros(2, 3)

    def load(weights: Weights) -> None:
        tensor = next(weights)[1]
        if way == "converted":
            live.copy_(tensor * 2)
        elif way == "transposed":
            live.view(3, 2).t().copy_(tensor)
        elif way == "elsewhere":  # such as a buffer that is packed afterwards
            other.copy_(tensor)
        else:  # and the rest by other means
            live[1:].copy_(tensor[1:])
            live[0] = tensor[0]
        next(weights)

    assert record(load, live) == {}
    written = {
        "converted": (live, [[0, 2, 4], [6, 8, 10]]),
        "transposed": (live.view(3, 2).t(), [[0, 1, 2], [3, 4, 5]]),
        "elsewhere": (other, [[0, 1, 2], [3, 4, 5]]),
        "half": (live[:1], [[0, 1, 2]]),
    }
    tensor, values = written[way]
    assert tensor.tolist() == values


def test_copying_is_as_before_after_a_loader_that_fails():
    def load(weights: Weights) -> None:
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        record(load)
    assert torch.zeros(2).copy_(torch.ones(2)).tolist() == [1, 1]

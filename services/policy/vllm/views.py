"""Where each element of a checkpoint lives in a running model, as its own loader puts it there. Imports torch alone.

Engines fuse tensors of a checkpoint (q, k and v into one), pad them, and keep a part of each on every worker. Their
loaders know how; they end in Tensor.copy_ from a part of a checkpoint's tensor to a part of a parameter. One load with
copy_ replaced by a recorder therefore shows all of it, and from then on a changed element is written where it lives.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A parameter's part that holds a part of one checkpoint tensor: some columns of some rows, or a flat range."""

    live: Tensor
    """The parameter's part, flat; to write to it is to change the model."""
    first: int
    """Flat index, in the checkpoint's tensor, of its first element."""
    num_columns: int
    """Elements that follow one another in the checkpoint, too, before the next row."""
    row_stride: int
    """Flat distance in the checkpoint from one row to the next."""

    def write(self, indices: Tensor, values: Tensor) -> None:
        """Sets elements of the checkpoint's tensor, by their flat indices (int64), as far as they live here."""
        indices, values = indices.to(self.live.device), values.to(self.live.device, self.live.dtype)
        if self.first or self.num_columns != self.row_stride:
            row, column = self._split(indices - self.first)
            here = (row >= 0) & (row < self.live.numel() // self.num_columns) & (column < self.num_columns)
            indices, values = (row * self.num_columns + column)[here], values[here]
        self.live.index_copy_(0, indices, values)

    def _split(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        # Before the first element the row is negative, or the column past the last: neither is here.
        row = offsets.div(self.row_stride, rounding_mode="floor")
        return row, offsets - row * self.row_stride


def record_views(
    load: Callable[[Iterator[tuple[str, Tensor]]], object],
    weights: Sequence[tuple[str, Tensor]],
    writable: Collection[int],
    *,
    sharded: bool,
) -> dict[str, tuple[View, ...]]:
    """Returns the views of every checkpoint tensor that can be written through them; others are left out.

    Args:
        load: the model's own loader (load_weights).
        weights: a whole checkpoint, contiguous, on the CPU: what the model holds, or will hold. What the loader writes
            in other ways than by copying a part of it is written in truth.
        writable: data pointers of the storages that may be written to; a tensor with a part elsewhere is left out.
        sharded: whether the model holds parts of tensors only; otherwise one of which a part is missing is left out.
    """
    copy = Tensor.copy_
    recorder = _Recorder(weights, writable, copy)
    Tensor.copy_ = lambda *args, **kwargs: recorder.copy_(*args, **kwargs)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            load(recorder.stream())
    finally:
        Tensor.copy_ = copy  # type: ignore[method-assign]
    return recorder.views(sharded)


@dataclass
class _Recorder:
    """Stands in for Tensor.copy_ during a load."""

    weights: Sequence[tuple[str, Tensor]]
    writable: Collection[int]
    really_copy: Callable[[Tensor, Tensor, bool], Tensor]
    _views: dict[str, list[View]] = field(default_factory=lambda: defaultdict(list))
    _unseen: set[str] = field(default_factory=set)
    _present: str = ""
    """The tensor that the loader took last."""

    def __post_init__(self) -> None:
        self._sorted = sorted(self.weights, key=lambda item: item[1].data_ptr())
        self._starts = [tensor.data_ptr() for _, tensor in self._sorted]

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the weights, taking note of which one is being loaded."""
        for name, tensor in self.weights:
            self._present = name
            yield name, tensor

    def copy_(self, destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Notes a copy that a view can stand for; makes any other."""
        found = self._find(source)
        view = _view(destination, source, found[1]) if found is not None else None
        if found is None or view is None or destination.untyped_storage().data_ptr() not in self.writable:
            self._unseen.add(self._present if found is None else found[0])
            return self.really_copy(destination, source, non_blocking)
        self._views[found[0]].append(view)
        return destination

    def views(self, sharded: bool) -> dict[str, tuple[View, ...]]:
        """Returns what was recorded of the tensors that were seen whole."""
        sizes = {name: tensor.numel() for name, tensor in self.weights}
        return {
            name: tuple(views)
            for name, views in self._views.items()
            if name not in self._unseen and (sharded or sum(view.live.numel() for view in views) >= sizes[name])
        }

    def _find(self, source: Tensor) -> tuple[str, Tensor] | None:
        """Returns the checkpoint tensor that a tensor is part of, if it is."""
        index = bisect_right(self._starts, source.data_ptr()) - 1
        if index < 0 or not source.is_cpu:
            return None
        name, whole = self._sorted[index]
        return (name, whole) if source.data_ptr() < whole.data_ptr() + whole.nbytes else None


def _view(destination: Tensor, source: Tensor, whole: Tensor) -> View | None:
    """Returns the view that a copy makes use of; None if it is of a kind that View cannot say."""
    if not destination.is_contiguous() or destination.shape != source.shape or source.dtype != whole.dtype:
        return None
    first = (source.data_ptr() - whole.data_ptr()) // whole.element_size()
    if source.is_contiguous():
        num_columns, row_stride = source.numel(), whole.numel()
    elif source.dim() == 2 and source.stride(1) == 1:
        num_columns, row_stride = source.shape[1], source.stride(0)
    else:
        return None
    return View(live=destination.detach().view(-1), first=first, num_columns=num_columns, row_stride=row_stride)


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """Returns the data pointers of the tensors' storages."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}

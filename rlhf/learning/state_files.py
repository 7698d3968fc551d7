"""An optimizer's state on disk: safetensors and JSON, written by any number of ranks and read by any other.

DIRECTORY/*.safetensors    float32 masters and moments, a file a rank, each with the offsets of its shards
DIRECTORY/counts.json      {"num_steps": 12, "adam_steps": {"lm_head.weight": 12, ...}}
"""

import json
import warnings
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rlhf.learning.optimizer import MasterOptimizer
from rlhf.learning.ranks import Ranks

COUNTS_FILE = "counts.json"


def write_state(directory: Path, optimizer: MasterOptimizer, ranks: Ranks, *, frozen_digest: str = "") -> None:
    """Writes all that the next step depends on into a directory. Every rank must call it.

    Args: frozen_digest: of the parameters that are not trained and so not written; empty if all are.
    Raises: OSError, on all ranks, if one cannot write.
    """

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _write_tensors(directory, optimizer.state_tensors(), ranks)
        if ranks.is_main:
            counts = {"num_steps": optimizer.num_steps, "adam_steps": optimizer.adam_steps()}
            text = json.dumps({**counts, "frozen_digest": frozen_digest}, indent=1)
            (directory / COUNTS_FILE).write_text(text)

    ranks.together(write)


def _write_tensors(directory: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    if ranks.world_size == 1:
        # What the reader below takes for a single shard. DCP's writer would first build the file in memory.
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "state.safetensors")
        return
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:
        # All ranks get it when one fails. It is no Exception, so nothing that expects one would see it.
        reasons = [f"rank {rank}: {reason}" for rank, (reason, _) in error.failures.items()]
        raise OSError("; ".join(reasons)) from None


def read_state(directory: Path, optimizer: MasterOptimizer, ranks: Ranks, *, frozen_digest: str = "") -> None:
    """Restores what write_state wrote, on whatever number of ranks; parameters become the masters, rounded.

    Every rank must call it. Raises: ValueError if the state is of another set of parameters, before anything changed.
    """
    counts = json.loads((directory / COUNTS_FILE).read_text())
    if counts["frozen_digest"] != frozen_digest:
        raise ValueError(
            f"the frozen weights have the digest {frozen_digest[:12] or 'none'}, those it was saved with "
            f"{counts['frozen_digest'][:12] or 'none'}"
        )
    reader = HuggingFaceStorageReader(str(directory))
    saved = reader.read_metadata().state_dict_metadata
    found = {name: tuple(each.size) for name, each in saved.items() if isinstance(each, TensorStorageMetadata)}
    with (
        optimizer.restoring(counts["num_steps"], counts["adam_steps"], found) as tensors,
        warnings.catch_warnings(),
    ):
        # One process is meant, no oversight.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load(tensors, storage_reader=reader, no_dist=ranks.world_size == 1)

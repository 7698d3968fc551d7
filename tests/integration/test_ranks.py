"""Two processes (gloo, CPU) learn what one does, and go on from what one saved, and the other way round."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.learning.ranks import Ranks
from services.trainer.state.checkpoint import read_state
from tests.support import ranks_worker
from tests.support.forked import Command
from tests.support.ports import free_port


def start_ranks(count: int, folder: Path, *arguments: Path) -> None:
    """Runs a worker on several ranks to its end; fails with what it wrote if one fails."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    outputs = [folder / f"rank-{rank}.txt" for rank in range(count)]
    processes = [
        Command(
            "tests.support.ranks_worker",
            *arguments,
            output=output,
            variables={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        codes = [process.wait(150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * count, "\n".join(output.read_text() for output in outputs)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path, tiny_reward_path: Path
) -> tuple[Path, Path]:
    """What one rank wrote, and what two did; each has also resumed from the other's state."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    paths = tiny_model_path, tiny_reward_path
    for kind in (*ranks_worker.KINDS, *ranks_worker.VARIANTS):
        ranks_worker.train(kind, paths, Ranks(), one)
    start_ranks(2, tmp_path_factory.mktemp("output"), *paths, one, two)
    for kind in ranks_worker.KINDS:
        ranks_worker.resume(kind, paths, Ranks(), two, one)
    return one, two


@pytest.mark.parametrize(
    "kind", [*ranks_worker.KINDS, *ranks_worker.VARIANTS, *(f"{kind}_resumed" for kind in ranks_worker.KINDS)]
)
def test_two_ranks_learn_what_one_does(folders: tuple[Path, Path], kind: str) -> None:
    one, two = (folder / kind for folder in folders)
    # In bfloat16 a weight may end on the other side of a rounding: 2^-8 of it.
    tolerance = {"atol": 5e-3, "rtol": 1e-2} if kind == "bfloat16" else {"atol": 1e-5, "rtol": 1e-5}
    numbers = [json.loads((folder / "numbers.json").read_text()) for folder in (one, two)]
    torch.testing.assert_close(torch.tensor(numbers[1]), torch.tensor(numbers[0]), **tolerance)
    expected, found = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


@pytest.mark.parametrize("kind", ranks_worker.KINDS)
def test_going_on_with_another_number_of_ranks_ends_where_the_run_did(folders: tuple[Path, Path], kind: str) -> None:
    for folder in folders:
        expected = load_file(folder / kind / "weights.safetensors")
        resumed = load_file(folder / f"{kind}_resumed" / "weights.safetensors")
        for name in expected:
            torch.testing.assert_close(resumed[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ranks_worker.KINDS)
def test_the_checkpoint_of_two_ranks_loads_in_transformers(folders: tuple[Path, Path], kind: str) -> None:
    folder = folders[1] / kind
    auto = AutoModelForSequenceClassification if kind == "scalar" else AutoModelForCausalLM
    model, report = auto.from_pretrained(folder / "weights", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights, own = load_file(folder / "weights.safetensors"), model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert sorted(path.suffix for path in (folder / "state").iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_every_rank_gets_the_sums_and_the_bytes_of_all(folders: tuple[Path, Path]) -> None:
    found = [json.loads((folders[1] / f"collectives-{rank}.json").read_text()) for rank in range(2)]
    for each in found:
        assert each["sum"] == [2.0, 11.0]
        assert [bytes.fromhex(text) for text in each["bytes"]] == [b"", b"\x00\xff long \x00"]
        assert each["empty"] == ["", ""]
    # Three items: the second rank fills its second turn with one that counts nothing.
    assert [each["share"] for each in found] == [[["a", 1.0], ["c", 1.0]], [["b", 1.0], ["a", 0.0]]]


def test_a_checkpoint_is_whole_on_all_ranks_or_on_none(folders: tuple[Path, Path]) -> None:
    for rank in range(2):
        found = json.loads((folders[1] / f"checkpoints-{rank}.json").read_text())
        assert found["newest"] == found["after"] == str(folders[1] / "checkpoints" / "step-000001")
        assert "could not write" in found["error"]
        assert "rank 1: [Errno 28] No space left on device; free some space" in found["error"]
    assert [path.name for path in (folders[1] / "checkpoints").iterdir()] == ["step-000001"]
    files = read_state(folders[1] / "checkpoints" / "step-000001")["files"]
    assert {name for name in files if name.startswith("policy_state/")} == {
        "policy_state/counts.json",
        "policy_state/shard-00001-model-00001-of-00001.safetensors",
        "policy_state/shard-00002-model-00001-of-00001.safetensors",
    }

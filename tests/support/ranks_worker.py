"""What tests/integration/test_ranks.py runs on one rank and on two: the same work, written down for comparison.

Run as a program it is one rank of several; imported, it is one rank alone.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf.algorithms.preference import bradley_terry_loss
from rlhf.errors import RunError
from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.learning.ranks import Ranks, join_ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import enable_activation_checkpointing, load_policy, load_tokenizer
from rlhf.models.policy_model import PolicyModel
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_sequences
from rlhf.process import end_rank
from services.trainer.config.sections import CheckpointConfig
from services.trainer.state.checkpoint import CheckpointFolder

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, weight_decay=0.1, max_grad_norm=1.0)
STEPS = 3
NUM_MICROS = 5  # two ranks cannot divide it evenly
KINDS = ("policy", "scalar", "lora")
VARIANTS = ("kept", "recomputed", "bfloat16")
"""The policy again: with all forward passes before the first backward pass, with activation checkpointing, and in the
element type of real runs."""


def make_model(kind: str, policy_path: Path, reward_path: Path, ranks: Ranks) -> TrainedModel:
    module: torch.nn.Module
    if kind == "scalar":
        module = ScalarModel.load(reward_path, "float32")
    else:
        torch.manual_seed(0)
        policy = load_policy(policy_path, dtype="bfloat16" if kind == "bfloat16" else "float32")
        # A value head of one row: the second rank's shard of it is empty.
        module = PolicyModel(policy, torch.nn.Linear(64, 1, bias=False, dtype=policy.dtype))
    if kind == "recomputed":
        enable_activation_checkpointing(module)
    lora = LoraConfig(rank=4) if kind == "lora" else None
    return TrainedModel(kind, module, OPTIMIZER, total_steps=10, ranks=ranks, lora=lora)


def make_micro(step: int, index: int) -> tuple[list[list[int]], list[list[int]]]:
    """Two prompts and two completions of the lengths 1 to 9."""
    generator = torch.Generator().manual_seed(100 * step + index)
    lengths = torch.randint(1, 10, (4,), generator=generator).tolist()
    texts = [torch.randint(4, 260, (length,), generator=generator).tolist() for length in lengths]
    return texts[:2], texts[2:]


def loss_of(model: TrainedModel, step: int, index: int, num_tokens: int) -> Tensor:
    """The micro-batch's part of the step's loss: mean over all tokens, or over all pairs."""
    prompts, completions = make_micro(step, index)
    if isinstance(model.module, ScalarModel):
        chosen, rejected = sequence_scores(model.module, pad_sequences(prompts, completions)).chunk(2)
        return bradley_terry_loss(chosen, rejected).sum() / NUM_MICROS
    assert isinstance(model.module, PolicyModel)
    sequences = pad_sequences(prompts, completions)
    logprobs, _, values = model.module(sequences, 1.0, with_values=True)
    return (values.square().sum() - logprobs.sum()) / num_tokens


def train_step(model: TrainedModel, step: int, ranks: Ranks) -> list[float]:
    """Takes one optimizer step; returns loss, gradient norm and learning rate."""
    num_tokens = sum(len(ids) for index in range(NUM_MICROS) for ids in make_micro(step, index)[1])
    shares = ranks.share(range(NUM_MICROS))
    # A pass without gradient before, as rollouts are scored: it must leave nothing behind.
    with torch.no_grad():
        loss_of(model, step, 0, num_tokens)
    if model.name == "kept":
        losses = [loss_of(model, step, share.item, num_tokens) * share.weight for share in shares]
        for loss in losses:
            loss.backward()
    else:
        losses = []
        for share in shares:
            losses.append(loss_of(model, step, share.item, num_tokens) * share.weight)
            losses[-1].backward()
    with torch.no_grad():
        loss_of(model, step, 0, num_tokens)
    total = ranks.sum_(torch.stack(losses).detach().sum())
    taken = model.step()
    return [float(total), taken.grad_norm, taken.learning_rate]


def train(kind: str, paths: tuple[Path, Path], ranks: Ranks, out: Path) -> None:
    """Trains STEPS steps, saving after the second, and writes down losses, weights, state and a checkpoint."""
    model = make_model(kind, *paths, ranks)
    numbers = []
    for step in range(STEPS):
        numbers.append(train_step(model, step, ranks))
        if step == 1 and kind in KINDS:
            model.save_state(out / kind / "state")
    _write(model, numbers, out / kind, ranks)
    if kind in KINDS:
        model.save_weights(out / kind / "weights", load_tokenizer(paths[0]))


def resume(kind: str, paths: tuple[Path, Path], ranks: Ranks, source: Path, out: Path) -> None:
    """Takes the third step from a state that another number of ranks saved."""
    model = make_model(kind, *paths, ranks)
    model.load_state(source / kind / "state")
    _write(model, [train_step(model, 2, ranks)], out / f"{kind}_resumed", ranks)


def use_collectives(ranks: Ranks, out: Path) -> None:
    """Writes down what every rank got from the others."""
    mine = [b"", b"\x00\xff long \x00"][ranks.rank]
    found = {
        "sum": ranks.sum_(torch.tensor([1.0, 10.0**ranks.rank])).tolist(),
        "bytes": [each.hex() for each in ranks.gather_bytes(mine)],
        "empty": [each.hex() for each in ranks.gather_bytes(b"")],
        "share": [(share.item, share.weight) for share in ranks.share("abc")],
    }
    ranks.barrier()
    (out / f"collectives-{ranks.rank}.json").write_text(json.dumps(found))


def save_checkpoints(paths: tuple[Path, Path], ranks: Ranks, out: Path) -> None:
    """Writes checkpoints as runs do, one of which fails on the last rank alone."""
    model = make_model("policy", *paths, ranks)
    folder = CheckpointFolder(out, CheckpointConfig(keep_last=1), ranks)

    def write(path: Path) -> None:
        model.save_weights(path / "policy", load_tokenizer(paths[0]))
        model.save_state(path / "policy_state")

    def fill_the_disk(path: Path) -> None:
        write(path)
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")

    folder.save(1, {"policy_version": 2}, write)
    newest = folder.newest()
    try:
        folder.save(2, {}, fill_the_disk)
    except RunError as error:
        message = str(error)
    found = {"newest": str(newest), "after": str(folder.newest()), "error": message}
    (out / f"checkpoints-{ranks.rank}.json").write_text(json.dumps(found))


def _write(model: TrainedModel, numbers: list[list[float]], out: Path, ranks: Ranks) -> None:
    weights = {name: tensor.clone() for name, tensor in model.weights()}
    if ranks.is_main:
        out.mkdir(parents=True, exist_ok=True)
        save_file(weights, out / "weights.safetensors")
        (out / "numbers.json").write_text(json.dumps(numbers))


def main() -> None:
    torch.set_num_threads(1)
    policy_path, reward_path, one_rank, out = map(Path, sys.argv[1:])
    ranks = join_ranks()
    for kind in KINDS:
        train(kind, (policy_path, reward_path), ranks, out)
        ranks.barrier()
        resume(kind, (policy_path, reward_path), ranks, one_rank, out)
    for kind in VARIANTS:
        train(kind, (policy_path, reward_path), ranks, out)
    use_collectives(ranks, out)
    save_checkpoints((policy_path, reward_path), ranks, out)
    end_rank(0)


if __name__ == "__main__":
    main()

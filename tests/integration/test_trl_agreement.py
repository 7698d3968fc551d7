"""Our losses of SFT, reward models and preferences against those of TRL's own trainers, on the same model and batch.

TRL tokenizes and collates its data itself; a test first makes sure that its token ids are ours.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from rlhf.algorithms import logprobs, losses, preference
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import completion_logprobs
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import PaddedSequences, pad_sequences
from tests.support.tiny_model import EOS_ID, PAD_ID, make_tiny_model

PROMPTS = ["The sea is", "Say it: ", "1 + 1 =", "Why?"]
CHOSEN = [" wide and blue.", "yes, gladly", " 2", " Because it rains, and rain is wet."]
REJECTED = [" no.", "no, never in my life", " three", " Why not?"]
MARGINS = [0.5, 0.0, 2.0, 1.0]


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy in training; the session's tiny model is its reference."""
    return make_tiny_model(tmp_path_factory.mktemp("policy"), seed=1)


def tokenized(completions: list[str], path: Path) -> PaddedSequences:
    tokenizer = AutoTokenizer.from_pretrained(path)
    return pad_sequences(
        [tokenizer(p).input_ids for p in PROMPTS], [[*tokenizer(c).input_ids, EOS_ID] for c in completions]
    )


def make_trainer(
    trainer: Any, config: Any, model: Any, path: Path, data: dict[str, list[Any]], **arguments: Any
) -> Any:
    """TRL's trainer of one batch, as it prepares itself."""
    options = {"per_device_train_batch_size": len(PROMPTS), "use_cpu": True, "bf16": False, "report_to": "none"}
    options |= {"gradient_checkpointing": False, "output_dir": str(path / "trl"), "disable_tqdm": True}
    given = {name: arguments.pop(name) for name in ("ref_model",) if name in arguments}
    tokenizer = AutoTokenizer.from_pretrained(path)
    return trainer(
        model=model,
        args=config(**options, **arguments),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        **given,
    )


def loss_and_batch(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss of the whole data set, with its gradient left in TRL's model, and the batch that it made of it."""
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return float(loss.detach()), batch


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)
        assert parameter.grad is not None
        assert parameter.grad.any()


def causal(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def pairs() -> dict[str, list[Any]]:
    return {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}


def our_logps(path: Path, sequences: PaddedSequences) -> Tensor:
    """[P] nats, summed over each completion."""
    with torch.no_grad():
        tokens = completion_logprobs(load_policy(path, dtype="float32"), sequences, 1.0)
    return logprobs.sequence_logprobs(tokens, sequences.completion_mask)


def assert_same_rows(actual: Tensor, chosen: PaddedSequences, rejected: PaddedSequences) -> None:
    """TRL puts the chosen rows above the rejected, padded to a common width."""
    expected = [*rows_of(chosen), *rows_of(rejected)]
    assert [row[: len(e)].tolist() for row, e in zip(actual, expected, strict=True)] == expected
    assert all((row[len(e) :] == PAD_ID).all() for row, e in zip(actual, expected, strict=True))


def rows_of(sequences: PaddedSequences) -> list[list[int]]:
    lengths = sequences.prompt_lengths + sequences.completion_lengths
    return [row[:length].tolist() for row, length in zip(sequences.input_ids, lengths, strict=True)]


@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
def test_sft_is_the_token_mean_over_the_completions(policy_path: Path, loss_type: str):
    data = {"prompt": PROMPTS, "completion": CHOSEN}
    trainer = make_trainer(SFTTrainer, SFTConfig, causal(policy_path), policy_path, data, loss_type=loss_type)
    expected, batch = loss_and_batch(trainer)
    sequences = tokenized(CHOSEN, policy_path)
    mask = sequences.completion_mask
    assert torch.equal(batch["input_ids"], sequences.input_ids)
    assert int((batch["labels"] != -100).sum()) == int(mask.sum())
    model = load_policy(policy_path, dtype="float32")
    tokens = completion_logprobs(model, sequences, 1.0)
    ours = losses.aggregate(-tokens, mask, num_tokens_global=int(mask.sum()))
    ours.backward()
    assert ours.item() == pytest.approx(expected, abs=1e-4)
    assert_same_gradients(model, trainer.model)


@pytest.mark.parametrize("center_coef", [0.0, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward_model_losses(tiny_reward_path: Path, center_coef: float, with_margin: bool):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path, dtype=torch.float32)
    data = pairs() | ({"margin": MARGINS} if with_margin else {})
    trainer = make_trainer(
        RewardTrainer, RewardConfig, model, tiny_reward_path, data, center_rewards_coefficient=center_coef or None
    )
    expected, batch = loss_and_batch(trainer)
    chosen, rejected = tokenized(CHOSEN, tiny_reward_path), tokenized(REJECTED, tiny_reward_path)
    assert_same_rows(batch["input_ids"], chosen, rejected)
    scorer = ScalarModel.load(tiny_reward_path, "float32")
    with torch.no_grad():
        scores = [sequence_scores(scorer, sequences) for sequences in (chosen, rejected)]
    margin = torch.tensor(MARGINS) if with_margin else None
    ours = preference.bradley_terry_loss(*scores, margin=margin, center_coef=center_coef).mean()
    assert float(ours) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("variant", "smoothing"), [("sigmoid", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.0), ("robust", 0.2)]
)
def test_dpo_losses(policy_path: Path, tiny_model_path: Path, variant: str, smoothing: float):
    # TRL's ipo too divides each log-ratio by its completion's length, so beta carries over as it is.
    trainer = make_trainer(
        DPOTrainer, DPOConfig, causal(policy_path), policy_path, pairs(),
        ref_model=causal(tiny_model_path), beta=0.1, loss_type=variant, label_smoothing=smoothing,
    )  # fmt: skip
    expected, batch = loss_and_batch(trainer)
    chosen, rejected = tokenized(CHOSEN, policy_path), tokenized(REJECTED, policy_path)
    assert_same_rows(batch["input_ids"], chosen, rejected)
    model = load_policy(policy_path, dtype="float32")
    tokens = [completion_logprobs(model, sequences, 1.0) for sequences in (chosen, rejected)]
    result = preference.dpo_loss(
        logprobs.sequence_logprobs(tokens[0], chosen.completion_mask),
        logprobs.sequence_logprobs(tokens[1], rejected.completion_mask),
        our_logps(tiny_model_path, chosen),
        our_logps(tiny_model_path, rejected),
        beta=0.1,
        variant=variant,
        label_smoothing=smoothing,
        chosen_lengths=chosen.completion_lengths,
        rejected_lengths=rejected.completion_lengths,
    )
    result.losses.mean().backward()
    assert float(result.losses.detach().mean()) == pytest.approx(expected, abs=1e-4)
    assert_same_gradients(model, trainer.model)
    rewards = trainer._metrics["eval"]
    assert float(result.chosen_rewards.mean()) == pytest.approx(rewards["rewards/chosen"][0], abs=1e-4)
    assert float(result.rejected_rewards.mean()) == pytest.approx(rewards["rewards/rejected"][0], abs=1e-4)


def test_cdpo_is_the_smoothed_sigmoid_of_trl(policy_path: Path):
    # TRL's DPOTrainer ignores label_smoothing in its sigmoid loss; its CPO trainer, which has no reference, does not.
    # cpo_alpha 0 leaves CPO's likelihood term out.
    trainer = make_trainer(
        CPOTrainer, CPOConfig, causal(policy_path), policy_path, pairs(),
        beta=0.1, loss_type="sigmoid", label_smoothing=0.2, cpo_alpha=0.0,
    )  # fmt: skip
    expected, _ = loss_and_batch(trainer)
    logps = [our_logps(policy_path, tokenized(completions, policy_path)) for completions in (CHOSEN, REJECTED)]
    no_reference = torch.zeros(len(PROMPTS))
    result = preference.dpo_loss(*logps, no_reference, no_reference, beta=0.1, label_smoothing=0.2)
    assert float(result.losses.mean()) == pytest.approx(expected, abs=1e-4)


def our_averages(path: Path) -> list[Tensor]:
    """Nats per token of the chosen and of the rejected, [P] each."""
    both = [tokenized(completions, path) for completions in (CHOSEN, REJECTED)]
    return [our_logps(path, sequences) / sequences.completion_lengths for sequences in both]


def test_simpo_losses(policy_path: Path):
    trainer = make_trainer(
        CPOTrainer, CPOConfig, causal(policy_path), policy_path, pairs(),
        beta=2.0, loss_type="simpo", simpo_gamma=1.0, cpo_alpha=0.0,
    )  # fmt: skip
    expected, batch = loss_and_batch(trainer)
    assert batch["chosen_input_ids"].tolist() == tokenized(CHOSEN, policy_path).input_ids.tolist()
    ours = preference.simpo_loss(*our_averages(policy_path), beta=2.0, margin=1.0).losses.mean()
    assert float(ours) == pytest.approx(expected, abs=1e-4)


def test_orpo_losses(policy_path: Path):
    # The odds ratio is the same. TRL's likelihood term covers the prompt too, and is a mean over the batch's tokens;
    # ours, as the paper writes it, is each completion's mean given its prompt. So TRL's term is exchanged for ours.
    trainer = make_trainer(ORPOTrainer, ORPOConfig, causal(policy_path), policy_path, pairs(), beta=0.1)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PROMPTS))])
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "train")
    averages = our_averages(policy_path)
    expected = float(loss) - metrics["nll_loss"] - float(averages[0].mean())
    ours = preference.orpo_loss(*averages, odds_weight=0.1).losses.mean()
    assert float(ours) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.2, 0.7)])
@pytest.mark.parametrize("swap", [False, True])
def test_kto_losses(policy_path: Path, tiny_model_path: Path, weights: tuple[float, float], swap: bool):
    # Swapping policy and reference turns the sign of the KL estimate: below 0 it counts as 0.
    policy, reference = (tiny_model_path, policy_path) if swap else (policy_path, tiny_model_path)
    desirable = [True, False, True, False]
    data = {"prompt": PROMPTS, "completion": CHOSEN, "label": desirable}
    trainer = make_trainer(
        KTOTrainer, KTOConfig, causal(policy), policy_path, data,
        ref_model=causal(reference), beta=0.1, desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    expected, batch = loss_and_batch(trainer)
    sequences = tokenized(CHOSEN, policy_path)
    assert torch.equal(batch["input_ids"], sequences.input_ids)
    # TRL's KL is of the next prompt with each completion.
    mismatched = tokenized([CHOSEN[-1], *CHOSEN[:-1]], policy_path)
    kl = (our_logps(policy, mismatched) - our_logps(reference, mismatched)).mean()
    assert (float(kl) < 0) == swap
    logps, ref_logps = our_logps(policy, sequences), our_logps(reference, sequences)
    result = preference.kto_loss(logps, ref_logps, torch.tensor(desirable), kl, 0.1, *weights)
    assert float(result.losses.mean()) == pytest.approx(expected, abs=1e-4)

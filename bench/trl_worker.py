"""Runs PPO steps of TRL's PPOTrainer on the fixed work and writes their times. Runs in TRL's environment.

    python trl_worker.py --work work.json --mode fp32 --steps 3 --micro-batch 8 --output result.json

Everything that is not the work is TRL's default. TRL's own default asks for bf16, which transformers refuses on a
machine without a GPU unless it is told to use the CPU; with bf16 off, the default is fp32.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

MODES = {
    # mode: (element type that the models are loaded in, mixed precision by autocast)
    "fp32": (torch.float32, False),
    "bf16": (torch.float32, True),
    "bf16-weights": (torch.bfloat16, False),
}


class StepTimer(TrainerCallback):
    """Notes when the parts of each step begin and end."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._marks: dict[str, float] = {}

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        """The first step begins."""
        self._marks = {"begin": time.monotonic()}

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """A step ends, and the next begins."""
        end = time.monotonic()
        marks = self._marks
        self.steps.append(
            {
                "generate_seconds": marks["generated"] - marks["begin"],
                "score_seconds": marks["update"] - marks["generated"],
                "update_seconds": end - marks["update"],
                "total_seconds": end - marks["begin"],
            }
        )
        self._marks = {"begin": end}

    def watch(self) -> None:
        """Mark the end of generation, and the first forward pass of the update."""
        generate: Callable[..., Any] = ppo_trainer.batch_generation
        forward: Callable[..., Any] = ppo_trainer.forward

        def watched_generate(*arguments: Any, **named: Any) -> Any:
            result = generate(*arguments, **named)
            self._marks["generated"] = time.monotonic()
            return result

        def watched_forward(model: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
            if torch.is_grad_enabled():
                self._marks.setdefault("update", time.monotonic())
            return forward(model, *arguments, **named)

        ppo_trainer.batch_generation = watched_generate
        ppo_trainer.forward = watched_forward


def build_trainer(work: dict[str, Any], mode: str, steps: int, micro_batch: int, folder: str) -> PPOTrainer:
    """The trainer, with policy, reference, reward and value loaded."""
    dtype, mixed = MODES[mode]
    # A padding id of its own: with the end-of-sequence id TRL would mask the turns' ends inside the prompts.
    tokenizer = AutoTokenizer.from_pretrained(work["policy_path"], padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(work["pad_id"])
    num_prompts = len(work["prompts"])
    config = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=num_prompts // micro_batch,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=num_prompts * steps,
        response_length=work["new_tokens"],
        temperature=work["temperature"],
        seed=work["seed"],
        bf16=mixed,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = Dataset.from_dict({"input_ids": work["prompts"]})

    def load(auto_class: Any, path: str) -> Any:
        return auto_class.from_pretrained(path, dtype=dtype)

    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=load(AutoModelForCausalLM, work["policy_path"]),
        ref_model=load(AutoModelForCausalLM, work["policy_path"]),
        reward_model=load(AutoModelForSequenceClassification, work["scalar_path"]),
        value_model=load(AutoModelForSequenceClassification, work["scalar_path"]),
        train_dataset=prompts,
    )


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text())
    set_seed(work["seed"])
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(work, arguments.mode, arguments.steps, arguments.micro_batch, folder)
        trainer.add_callback(timer)
        timer.watch()
        trainer.train()
    arguments.output.write_text(json.dumps({"steps": timer.steps, "threads": torch.get_num_threads()}))
    print(statistics.median(step["total_seconds"] for step in timer.steps))


if __name__ == "__main__":
    main()

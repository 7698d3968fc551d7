"""Trains with TRL's GRPO trainer and our reward function: trl_worker.py TARGET MODEL OUT. A process of its own.

Writes what was scored and what TRL logged as JSON to OUT/result.json.
"""

import json
import sys
from pathlib import Path

from rlhf.client.adapters.trl import GrpcReward, make_async_reward

PROMPTS = ["How are you?", "And you?", "Why?", "Where is the sea?"]


class NotingReward(GrpcReward):
    """Keeps what it was asked and what it answered."""

    calls: list[dict[str, object]]

    def __call__(self, prompts, completions, **columns):
        rewards = super().__call__(prompts, completions, **columns)
        self.calls.append({"prompts": prompts, "completions": completions, "rewards": rewards})
        return rewards


def main() -> None:
    # This TRL refuses to load beside the version of vLLM that we serve with, and needs none: hide it.
    sys.modules["vllm"] = None  # type: ignore[assignment]
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    target, model, out = sys.argv[1:]
    reward = NotingReward(target)
    reward.calls = []
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}], "topic": "sea"} for prompt in PROMPTS])
    config = GRPOConfig(
        output_dir=out,
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=1,
    )
    rewards = [reward, make_async_reward(target, name="side_by_side")]
    trainer = GRPOTrainer(model=model, reward_funcs=rewards, args=config, train_dataset=data)
    trainer.train()
    result = {"step": trainer.state.global_step, "calls": reward.calls, "log": trainer.state.log_history}
    Path(out, "result.json").write_text(json.dumps(result))
    reward.close()


if __name__ == "__main__":
    main()

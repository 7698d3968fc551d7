"""The reward-KL frontier of PPO and DPO on the small real model: python bench/frontier.py [--from DEMO_RUN_DIR]

From one start: completions are sampled, the simulated labeller chooses, a reward model learns from the choices. Then
DPO with several betas and PPO with several KL coefficients; every policy is evaluated on the same held-out prompts with
the same seeds. Writes frontier.md and frontier.png (Rafailov et al. 2023, arXiv:2305.18290, figure 2 left).

What is finished is kept in --folder: started again, it goes on where it stopped.
"""

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from bench.frontier_stages import FrontierOptions, frontier_stages
from bench.measurements import machine_facts, positive, say
from rlhf.errors import ConfigError, RunError, ServiceError
from rlhf_cli.errors import LocalServiceError
from rlhf_cli.local.supervisor import interrupt_on_signals
from rlhf_cli.models.fetch import fetch_small_model
from rlhf_cli.pipeline.labelling import NOISE_RATE, SHORT_AND_FINISHED
from rlhf_cli.pipeline.phases import Phases
from services.trainer.evaluation.frontier import FrontierPoint, markdown_table, plot_frontier, read_points

NUM_SHARED_STAGES = 3  # the pairs, the reward model, the evaluation of the start


def main() -> int:
    """Measures, writes the table and the plot; returns the exit code."""
    arguments = _parse()
    try:
        with interrupt_on_signals():
            points = _measure(arguments)
    except (ConfigError, ServiceError, RunError, LocalServiceError) as error:
        say(f"frontier: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    arguments.docs.mkdir(parents=True, exist_ok=True)
    plot = arguments.docs / "frontier.png"
    plot_frontier(points, plot, score="true")
    text = _page(points, arguments)
    (arguments.docs / "frontier.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _measure(arguments: argparse.Namespace) -> list[FrontierPoint]:
    total = NUM_SHARED_STAGES + 2 * (len(arguments.betas) + len(arguments.kl_coefs))
    disable_progress_bar()
    phases = Phases(Console(stderr=True, highlight=False), total)
    options = FrontierOptions(
        folder=arguments.folder.resolve(),
        model=arguments.model or fetch_small_model(report=phases.say),
        demo_run=arguments.demo_run,
        engine=arguments.engine,
        pattern=arguments.pattern,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        pair_prompts=arguments.pair_prompts,
        heldout_prompts=arguments.heldout_prompts,
        eval_samples=arguments.eval_samples,
        ppo_steps=arguments.ppo_steps,
        prompts_per_step=arguments.prompts_per_step,
        dpo_epochs=arguments.dpo_epochs,
        dpo_learning_rate=arguments.dpo_learning_rate,
    )
    with frontier_stages(options, phases) as stages:
        stages.make_pairs()
        stages.train_reward_model()
        summaries = [stages.evaluate("start", options.model)]
        for beta in arguments.betas:
            name = f"dpo:{beta:g}"
            summaries.append(stages.evaluate(name, stages.train_dpo(name, beta)))
        for kl_coef in arguments.kl_coefs:
            name = f"ppo:{kl_coef:g}"
            summaries.append(stages.evaluate(name, stages.train_ppo(name, kl_coef)))
    return read_points(summaries, score="true", training_reward="reward")


def _page(points: list[FrontierPoint], arguments: argparse.Namespace) -> str:
    """Returns the page of documentation: plot, table, and how they were made."""
    facts = machine_facts()
    command = shlex.join(["make", "bench-frontier", *([f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else [])])
    model = "SmolLM2-135M-Instruct" if arguments.model is None else f"`{arguments.model.name}`"
    rule = (
        "The score is the simulated labeller's rule: the share of completions that are short and finished. The "
        f"labeller errs in {NOISE_RATE:.0%} of its choices, and neither training sees the rule."
        if arguments.pattern == SHORT_AND_FINISHED
        else f"The score is the share of completions that match `{arguments.pattern}`."
    )
    return f"""# The reward-KL frontier

What a policy earns against how far it went from where it started, for PPO and DPO with several strengths of their KL
penalties (as Rafailov et al. 2023, arXiv:2305.18290, figure 2 left). {model}; all policies come from the same start and
the same labelled pairs, and are evaluated on the same {arguments.heldout_prompts} held-out prompts,
{arguments.eval_samples} completions each, with the same seeds.

{rule}

![score against KL](frontier.png)

{markdown_table(points)}
Means with 95 % intervals clustered by prompt; KL is the mean over completions of log policy - log reference.

Made on {datetime.now(UTC):%Y-%m-%d} ({facts["cores"]} cores, torch {facts["versions"].get("torch", "?")}) with

    {command}
"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="demo_run", type=Path, metavar="RUN_DIR", help="take pairs and reward model of a finished demo"
    )
    parser.add_argument("--betas", type=float, nargs="*", default=[0.05, 0.1, 0.3], help="of DPO")
    parser.add_argument("--kl-coefs", type=float, nargs="*", default=[0.01, 0.03, 0.1], help="of PPO")
    parser.add_argument("--ppo-steps", type=positive, default=24)
    parser.add_argument("--prompts-per-step", type=positive, default=24, help="of PPO")
    parser.add_argument("--dpo-epochs", type=positive, default=2)
    parser.add_argument("--dpo-learning-rate", type=float, default=5e-5)
    parser.add_argument("--pair-prompts", type=positive, default=220, help="prompts whose completions are labelled")
    parser.add_argument("--heldout-prompts", type=positive, default=64)
    parser.add_argument("--eval-samples", type=positive, default=2, help="completions of each held-out prompt")
    parser.add_argument("--max-new-tokens", type=positive, default=32)
    parser.add_argument("--model", type=Path, help="checkpoint to start from; default: SmolLM2-135M-Instruct")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--pattern", default=SHORT_AND_FINISHED, help="what the labeller likes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/frontier"), help="for models, logs and results")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where table and plot are written")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

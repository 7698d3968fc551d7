"""The demo: START HERE. All of RLHF, from a model and a labeller to a better model, as the phases below tell it."""

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlhf.data.prompts import load_prompts
from rlhf.errors import ConfigError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.rollout import Sampling
from rlhf.toml_files import write_config
from rlhf_cli.demo.checkpoint_check import check_checkpoint
from rlhf_cli.demo.options import DemoOptions
from rlhf_cli.demo.report import write_report
from rlhf_cli.demo.results import TRUE_SCORE, CheckpointCheck, DemoResults, show, verdict
from rlhf_cli.demo.run_configs import HELDOUT_PROMPTS, MAX_PROMPT_TOKENS, TRAIN_PROMPTS, ppo_config, reward_model_config
from rlhf_cli.demo.small_model import fetch_small_model
from rlhf_cli.local.processes import interrupt_on_signals
from rlhf_cli.local.services import ENVIRONMENT, LocalServices
from rlhf_cli.local.services_file import ServiceEntry
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.pipeline.labelling import (
    COMPLETIONS_PER_PROMPT,
    NOISE_RATE,
    SHORT_AND_FINISHED,
    sample_completions,
    with_texts,
    write_labelled_pairs,
)
from rlhf_cli.pipeline.phases import DemoError, Phases
from services.trainer.config.sections import ServicesConfig
from services.trainer.evaluation.evaluate import Evaluation, evaluate
from services.trainer.fleet.peers import TRAINING_REWARD, Peers
from services.trainer.offline.reward_model.report import RewardModelReport, read_report

NUM_PHASES = 9
CHECKED_PROMPTS = 8
START_TIMEOUT_SECONDS = 600.0


def run_demo(options: DemoOptions, console: Console) -> DemoResults:
    """Runs the whole demo; returns what it found, which is also printed and written to the run's directory.

    Whatever ends it, no process that it started is left.

    Raises: ConfigError for options that cannot be used; DemoError if a part fails; ServiceError, RunError.
    """
    if options.run_dir.exists() and any(options.run_dir.iterdir()):
        raise ConfigError(f"--run-dir is '{options.run_dir}': it is not empty; choose another directory")
    options.run_dir.mkdir(parents=True, exist_ok=True)
    phases = Phases(console, NUM_PHASES)
    with interrupt_on_signals(), Supervisor(options.run_dir / "logs", phases.say) as supervisor:
        services = LocalServices(supervisor, options.services_file)
        return _Demo(options, phases, supervisor, services).run(console)


class _Demo:
    """One demo, with what its phases share."""

    def __init__(self, options: DemoOptions, phases: Phases, supervisor: Supervisor, services: LocalServices) -> None:
        self._options = options
        self._phases = phases
        self._supervisor = supervisor
        self._services = services

    def run(self, console: Console) -> DemoResults:
        """Tells the story."""
        options, phase = self._options, self._phases.phase
        with phase("Fetch the model"):
            self._prepare()
        with phase("Start the policy, the reference, and the true score"):
            policy, reference, truth = self._start_first_services()
        with phase("Sample pairs of completions; the labeller chooses"):
            self._label_pairs(policy)
        with phase("Train the reward model on the choices"):
            reward_model = self._train_reward_model()
        with phase("Start the reward service"):
            reward = self._start_reward_service()
        with phase("Evaluate before"):
            before = self._evaluate(policy, reference, {TRAINING_REWARD: reward, TRUE_SCORE: truth})
        with phase(f"PPO, {options.steps} steps"):
            self._run_ppo(policy, reward, reference)
        with phase("Evaluate after"):
            after = self._evaluate(policy, reference, {TRAINING_REWARD: reward, TRUE_SCORE: truth})
        with phase("Check the checkpoint"):
            check = self._check_checkpoint(policy)
        results = DemoResults(
            before=before,
            after=after,
            reward_model=reward_model,
            check=check,
            phase_seconds=self._phases.seconds,
            checkpoint=options.final_checkpoint,
        )
        self._publish(results, console)
        return results

    def _prepare(self) -> None:
        """Gets the model and reads the prompts."""
        options = self._options
        disable_progress_bar()
        self._model = options.model or fetch_small_model(report=self._phases.say)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(self._model)
        train = load_prompts(TRAIN_PROMPTS, self._tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS).items
        heldout = load_prompts(HELDOUT_PROMPTS, self._tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS).items
        self._train = train[: options.pair_prompts]
        self._heldout = heldout[: options.heldout_prompts]
        self._phases.say(f"model {self._model}")
        self._phases.say(f"{len(train)} training prompts, {len(self._heldout)} held-out prompts; run {options.run_dir}")

    def _start_first_services(self) -> tuple[ServiceEntry, ServiceEntry, ServiceEntry]:
        """Starts what does not need the reward model."""
        model = str(self._model)
        policy = self._start_policy("policy", model, "bfloat16")
        reference = self._services.start("reference", "reference", ["--model.path", model])
        rule = ["--scorer.kind", "pattern", "--scorer.pattern", SHORT_AND_FINISHED]
        truth = self._services.start("true-score", "reward", [*rule, "--scorer.tokenizer", model])
        self._phases.say(f"look at them:  rlhf status --services {self._options.services_file}")
        self._wait_for([policy, reference, truth])
        return policy, reference, truth

    def _start_policy(self, name: str, model: str, dtype: str) -> ServiceEntry:
        max_tokens = MAX_PROMPT_TOKENS + self._options.max_new_tokens
        arguments = ["--model.path", model, "--model.dtype", dtype, "--model.engine", self._options.engine]
        return self._services.start(name, "policy", [*arguments, "--model.max_sequence_tokens", str(max_tokens)])

    def _start_reward_service(self) -> ServiceEntry:
        arguments = ["--scorer.kind", "model", "--scorer.path", str(self._options.reward_model)]
        reward = self._services.start("reward", "reward", arguments)
        self._wait_for([reward])
        return reward

    def _wait_for(self, entries: Sequence[ServiceEntry]) -> None:
        with self._phases.waiting("starting") as on_wait:
            self._services.wait_ready(entries, START_TIMEOUT_SECONDS, on_wait)

    def _label_pairs(self, policy: ServiceEntry) -> None:
        """Samples two completions of each prompt and writes the labeller's choices."""
        options = self._options
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            completions_per_prompt=COMPLETIONS_PER_PROMPT,
        )
        with self._phases.counting("sampling", COMPLETIONS_PER_PROMPT * len(self._train)) as advance:
            rollouts = asyncio.run(
                sample_completions(
                    policy.target,
                    self._train,
                    sampling=sampling,
                    seed=options.seed,
                    on_rollout=advance,
                )
            )
        sampled = with_texts(self._train, rollouts, self._tokenizer)
        data = write_labelled_pairs(options.pairs_file, sampled, seed=options.seed)
        if not data.pairs:
            raise DemoError("the labeller saw no difference in any pair; take a model that writes words (--model DIR)")
        self._phases.say(
            f"the labeller chose in {len(data.pairs)} pairs (it errs in {NOISE_RATE:.0%} of them: {data.num_flipped}), "
            f"and saw no difference in {data.num_skipped}: {options.pairs_file}"
        )

    def _train_reward_model(self) -> RewardModelReport:
        config_path = self._options.run_dir / "reward_model.toml"
        write_config(config_path, reward_model_config(self._options, self._model))
        self._run_rlhf("train", "reward-model", "--config", str(config_path))
        return read_report(self._options.reward_run_dir)

    def _run_ppo(self, policy: ServiceEntry, reward: ServiceEntry, reference: ServiceEntry) -> None:
        config_path = self._options.run_dir / "ppo.toml"
        config = ppo_config(self._options, self._model, policy=policy, reward=reward, reference=reference)
        write_config(config_path, config)
        trainer = self._services.announce("trainer", "trainer")
        self._run_rlhf("train", "ppo", "--config", str(config_path), *self._services.server_flags(trainer))
        self._services.withdraw(trainer)

    def _run_rlhf(self, *arguments: str) -> None:
        """Runs an rlhf command on this terminal. Raises: DemoError if it fails; it has said why."""
        self._phases.say(f"$ rlhf {' '.join(arguments)}", style="cyan")
        command = [sys.executable, "-m", "rlhf_cli.main", *arguments]
        exit_code = self._supervisor.run(command, ENVIRONMENT)
        if exit_code != 0:
            raise DemoError(
                f"`rlhf {' '.join(arguments[:2])}` ended with exit code {exit_code}; "
                f"the services' logs are in {self._options.run_dir / 'logs'}"
            )

    def _evaluate(self, policy: ServiceEntry, reference: ServiceEntry, rewards: dict[str, ServiceEntry]) -> Evaluation:
        """Returns how the policy does on the held-out prompts as it is served now."""
        options = self._options
        config = ServicesConfig(
            policy_targets=[policy.target],
            reference_target=reference.target,
            wait_for_services_seconds=options.wait_for_services_seconds,
        )

        async def work() -> Evaluation:
            peers = Peers(
                config,
                tokenizer_digest=tokenizer_digest(self._tokenizer),
                report=self._phases.say,
                reward_targets={name: entry.target for name, entry in rewards.items()},
            )
            async with peers:
                return await evaluate(
                    self._heldout,
                    peers,
                    self._decode,
                    samples_per_prompt=options.eval_samples,
                    max_new_tokens=options.max_new_tokens,
                    temperature=options.temperature,
                    seed=options.seed,
                )

        with self._phases.working(f"{len(self._heldout)} held-out prompts, {options.eval_samples} completions each"):
            evaluation = asyncio.run(work())
        score = evaluation.summary[f"reward/{TRUE_SCORE}"]
        self._phases.say(f"true score {score.mean:+.3f} over {score.count} completions")
        return evaluation

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _check_checkpoint(self, policy: ServiceEntry) -> CheckpointCheck:
        """Loads the checkpoint in a fresh engine and in transformers, and compares."""
        fresh = self._start_policy("checkpoint", str(self._options.final_checkpoint), "float32")
        self._wait_for([fresh])
        with self._phases.working("greedy completions by transformers and by the engine"):
            check = asyncio.run(
                check_checkpoint(
                    self._options.final_checkpoint,
                    self._heldout[:CHECKED_PROMPTS],
                    trained_target=policy.target,
                    fresh_target=fresh.target,
                    max_new_tokens=self._options.max_new_tokens,
                )
            )
        same = "the same as" if check.digests_equal else "NOT the same as"
        self._phases.say(f"its weights are {same} those that the policy service was pushed last (digest)")
        self._phases.say(
            f"greedy completions of transformers and {self._options.engine}, both float32: "
            f"{check.num_equal} of {check.num_prompts} equal token for token"
        )
        return check

    def _publish(self, results: DemoResults, console: Console) -> None:
        """Prints the outcome, and writes the report and the numbers."""
        console.print()
        show(results, console)
        write_report(self._options, results)
        results.write_json(self._options.results_file)
        say = self._phases.say
        say(verdict(results), style="bold")
        say(f"report      {self._options.report_file}")
        say(f"checkpoint  {results.checkpoint}")
        say(f"numbers     {self._options.results_file}")

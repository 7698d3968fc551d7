"""`rlhf eval` and `rlhf frontier`: how good policies are, and what they pay for it in KL."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf_cli.commands.inputs import load_text_tokenizer
from rlhf_cli.commands.output import print_json, print_table, stderr, stdout
from rlhf_cli.commands.targets import (
    JsonOption,
    PolicySource,
    ServicesOption,
    TokenizerOption,
    named_policies,
    named_rewards,
    resolve_target,
    run_against,
)
from rlhf_cli.errors import UsageError

if TYPE_CHECKING:
    from rlhf.client.policy import PolicyModel
    from rlhf_cli.local.services import Dtype, LocalServices, ServiceEntry
    from services.trainer.evaluation.evaluate import Evaluation, EvaluationSettings, Judges

START_TIMEOUT_SECONDS = 600.0
Names = Annotated[list[str] | None, typer.Option(metavar="[NAME=]HOST:PORT", help="A policy service; may be repeated.")]


def evaluate(
    prompts: Annotated[Path, typer.Option(metavar="FILE", help='JSONL with "prompt" or "messages" on each line.')],
    policy: Names = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A policy's checkpoint, served here while it is evaluated; repeatable."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A second policy service: the table has both (--policy is 'before')."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]HOST:PORT|DIR",
            help="A reward service or judge, or a reward model to serve here; several may be given, each with a name.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|DIR", help="The reference service, or a checkpoint to serve here as one."),
    ] = None,
    services: ServicesOption = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=256, help="Completions of each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a completion.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="Divides the logits; 0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal completions from equal weights.")] = 0,
    tokenizer: TokenizerOption = None,
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="What samples a --checkpoint.")] = "vllm",
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Element type of what is served here.")
    ] = "bfloat16",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write rows.jsonl, summary.json and table.txt there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sample completions of prompts from one or more policies, score them, and show means with 95 % intervals.

    Of several policies, the others' win rates against the first are shown, by each reward service.
    """
    if temperature == 0 and samples > 1:
        raise UsageError("--temperature 0 is greedy: its samples are all equal; use --samples 1")
    policies = named_policies(policy, checkpoint, against, services)
    rewards = named_rewards(reward, services)
    reference_target = resolve_target("reference", reference, services)

    def settings() -> "EvaluationSettings":
        from services.trainer.evaluation.evaluate import EvaluationSettings

        return EvaluationSettings(
            samples_per_prompt=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )

    evaluations: dict[str, Evaluation] = {}
    with _served_folders() as folders:
        judges = _Judged(folders, rewards, reference_target, dtype)
        subject = _Subject(prompts, tokenizer, max_new_tokens)
        for name, source in policies.items():
            with _policy_target(folders, name, source, engine, dtype) as target:
                model = subject.look_at(target)
                with stderr.status(f"evaluating {name} at {target}"):
                    evaluations[name] = run_against(target, subject.evaluate(target, model, judges.get(), settings()))
    _print(evaluations, as_json)
    if out is not None:
        from services.trainer.evaluation.report import write_evaluations

        write_evaluations(out, evaluations, {"prompts": str(prompts), **asdict(settings())})
        stderr.print(f"written to {out}", soft_wrap=True, markup=False)


def frontier(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="summary.json files of `rlhf eval --out`.")],
    score: Annotated[str, typer.Option(metavar="NAME", help="The reward service that gives the height.")] = "true",
    training_reward: Annotated[
        str, typer.Option(metavar="NAME", help="The reward service that was trained against, for the table.")
    ] = "reward",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it as PNG, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what policies earn against their KL to the reference: the reward-KL frontier.

    The names of the policies say what they are: FAMILY[:COEFFICIENT][@STEP], such as start, dpo:0.1 or ppo:0.03@14.
    """
    from services.trainer.evaluation.frontier import HEADINGS, plot_frontier, read_points, table_rows

    points = read_points(files, score=score, training_reward=training_reward)
    if as_json:
        for point in points:
            print_json(asdict(point))
    else:
        print_table(HEADINGS, table_rows(points))
    if plot is not None:
        plot_frontier(points, plot, score=score)
        stderr.print(f"drawn in {plot}", soft_wrap=True, markup=False)


class _ServedFolders:
    """Serves checkpoints on this machine, for as long as the command runs or a block lasts."""

    def __init__(self, services: "LocalServices") -> None:
        self._services = services

    def start(self, name: str, kind: str, arguments: Sequence[str]) -> "ServiceEntry":
        """Returns a service of that kind once it serves. Raises: ServiceDiedError."""
        entry = self._services.start(name, kind, arguments)
        with stderr.status(f"starting {name}"):
            self._services.wait_ready([entry], START_TIMEOUT_SECONDS, lambda states: None)
        return entry

    @contextmanager
    def serving(self, name: str, kind: str, arguments: Sequence[str]) -> Iterator[str]:
        """Serves inside the block alone; gives the target."""
        entry = self.start(name, kind, arguments)
        try:
            yield entry.target
        finally:
            self._services.end(entry)


@contextmanager
def _served_folders() -> Iterator[_ServedFolders]:
    """Gives what starts services; all of them are gone when the block is left, whatever ends it."""
    from rlhf_cli.local.services import LocalServices
    from rlhf_cli.local.supervisor import Supervisor, interrupt_on_signals

    with TemporaryDirectory(prefix="rlhf-") as folder, interrupt_on_signals():
        place = Path(folder)
        with Supervisor(place / "logs", lambda message: stderr.print(message, markup=False)) as supervisor:
            yield _ServedFolders(LocalServices(supervisor, place / "services.toml"))


class _Judged:
    """The reference and the reward services; those given as folders are started when they are first needed."""

    def __init__(self, folders: _ServedFolders, rewards: Mapping[str, str], reference: str, dtype: "Dtype") -> None:
        self._folders = folders
        self._given = (rewards, reference)
        self._dtype = dtype
        self._judges: Judges | None = None

    def get(self) -> "Judges":
        """Returns where they are."""
        if self._judges is None:
            from services.trainer.evaluation.evaluate import Judges

            rewards, reference = self._given
            self._judges = Judges(
                reference_target=self._served("reference", "reference", reference),
                rewards={name: self._served(f"reward-{name}", "reward", target) for name, target in rewards.items()},
            )
        return self._judges

    def _served(self, name: str, kind: str, target: str) -> str:
        if not Path(target).is_dir():
            return target
        from rlhf_cli.local.services import reference_arguments, reward_arguments

        arguments = reference_arguments if kind == "reference" else reward_arguments
        return self._folders.start(name, kind, arguments(Path(target), dtype=self._dtype)).target


class _Subject:
    """The prompts, read once with the first policy's tokenizer, so that all policies get the same ones."""

    def __init__(self, prompts_file: Path, tokenizer_path: Path | None, max_new_tokens: int) -> None:
        self._prompts_file = prompts_file
        self._tokenizer_path = tokenizer_path
        self._max_new_tokens = max_new_tokens
        self._read = False

    def look_at(self, target: str) -> "PolicyModel":
        """Returns what a policy service serves: one that is not there is told of before torch takes its seconds."""
        from rlhf.client.policy import PolicyClient

        async def ask() -> "PolicyModel":
            async with PolicyClient(target) as policy:
                return await policy.get_model()

        return run_against(target, ask())

    async def evaluate(
        self, target: str, model: "PolicyModel", judges: "Judges", settings: "EvaluationSettings"
    ) -> "Evaluation":
        """Returns how a policy does."""
        from rlhf.data.prompts import load_prompts
        from services.trainer.evaluation.evaluate import evaluate_served

        if not self._read:
            self._tokenizer = load_text_tokenizer(self._tokenizer_path, model.model_name)
            limit = model.max_sequence_tokens - self._max_new_tokens
            prompts = load_prompts(self._prompts_file, self._tokenizer, max_prompt_tokens=limit)
            self._items = prompts.items
            self._read = True
            if prompts.num_too_long:
                stderr.print(f"{prompts.num_too_long} prompts of more than {limit} tokens are left out")
        return await evaluate_served([target], judges, self._items, self._tokenizer, settings)


@contextmanager
def _policy_target(
    folders: _ServedFolders, name: str, source: PolicySource, engine: Literal["vllm", "transformers"], dtype: "Dtype"
) -> Iterator[str]:
    """Gives where a policy is served; a checkpoint is served inside the block alone."""
    if isinstance(source, str):
        yield source
        return
    from rlhf_cli.local.services import policy_arguments

    arguments = policy_arguments(source, engine=engine, dtype=dtype)
    with folders.serving(f"policy-{name}", "policy", arguments) as target:
        yield target


def _print(evaluations: "Mapping[str, Evaluation]", as_json: bool) -> None:
    from services.trainer.evaluation.report import dropped_lines, tables, win_rates

    rates = win_rates(evaluations)
    if as_json:
        for name, evaluation in evaluations.items():
            summary = {key: asdict(value) for key, value in evaluation.summary.items()}
            wins = {key: asdict(value) for key, value in rates.get(name, {}).items()}
            print_json({"name": name, "summary": summary, "win_rates": wins, "dropped": evaluation.dropped})
        return
    for table in tables(evaluations, rates):
        stdout.print(table)
    for line in dropped_lines(evaluations):
        stderr.print(line, markup=False)

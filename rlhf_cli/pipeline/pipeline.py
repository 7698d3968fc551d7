"""The pipeline: START HERE. Every stage in its order, each done only if what it depends on has changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rlhf.config import load_toml, suggestion
from rlhf.errors import ConfigError
from rlhf_cli.local.supervisor import Supervisor, interrupt_on_signals
from rlhf_cli.pipeline.actions import Actions
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.lineage import Lineage
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.plan import make_plan
from rlhf_cli.pipeline.services import PipelineServices
from rlhf_cli.pipeline.stages import Stage, StageRunner
from services.trainer.state.run_dir import locked

CONFIG_FILE = "pipeline.toml"
"""In a run directory: the configuration that it was last run with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which stages to do."""

    resume: bool = False
    """Go on in a run directory that holds a run."""
    first: str | None = None
    """Do this stage and all after it afresh; those before it are taken as they are."""
    only: str | None = None
    """Do this stage alone, afresh."""


def run_pipeline(config_file: Path, selection: Selection, console: Console) -> None:
    """Brings a pipeline's stages up to date, one after the other.

    Whatever ends it, no process that it started is left; `resume` goes on with the stage that was running.

    Raises: ConfigError before anything is started; StageError, ServiceError, RunError, LocalServiceError if a stage
        fails.
    """
    config = load_toml(PipelineConfig, config_file)
    pipeline = Pipeline(config, selection, Phases(console), source=str(config_file))
    with interrupt_on_signals(), pipeline.started(config_file.read_text(encoding="utf-8")):
        for stage in pipeline.stages:
            pipeline.do(stage)


class Pipeline:
    """The stages of one configuration, and the services that they share: `with pipeline.started(...): ...`."""

    def __init__(self, config: PipelineConfig, selection: Selection, phases: Phases, *, source: str) -> None:
        """Checks everything and starts nothing.

        Args:
            source: where the configuration stands, for errors.
        Raises: ConfigError.
        """
        self._config = config
        self._phases = phases
        self._is_forced = selection.first is not None or selection.only is not None
        self._supervisor = Supervisor(config.run_dir / "logs", phases.say)
        self.services = PipelineServices(config, self._supervisor, phases)
        lineage = Lineage(config.run_dir)
        self.plan = make_plan(config, Actions(config, self.services, phases, lineage), source=source)
        names = [stage.name for stage in self.plan.stages]
        lineage.set_order(names)
        _check_selection(selection, names)
        check_run_dir(config.run_dir, selection)
        self.stages = _selected(self.plan.stages, selection)
        """Those to be done."""
        self._runner = StageRunner(lineage, phases.say)
        phases.total = phases.total or len(self.stages)

    @contextmanager
    def started(self, toml: str) -> Iterator[None]:
        """Holds the run directory; when it is left, no process that was started is left. Raises: ConfigError.

        Args:
            toml: the configuration, which is kept in the run directory.
        """
        with locked(self._config.run_dir, who="pipeline"), self._supervisor:
            (self._config.run_dir / CONFIG_FILE).write_text(toml, encoding="utf-8")
            yield

    def do(self, stage: Stage) -> None:
        """Brings a stage up to date, as a phase on the terminal."""
        with self._phases.phase(f"{stage.name}: {stage.title}"):
            self._runner.bring_up_to_date(stage, force=self._is_forced)
            self.services.end_stage()


def check_run_dir(run_dir: Path, selection: Selection) -> None:
    """Raises ConfigError for a directory that would be written into by mistake."""
    may_go_on = selection.resume or selection.first is not None or selection.only is not None
    if may_go_on or not run_dir.exists() or not any(run_dir.iterdir()):
        return
    if (run_dir / "lineage.json").exists():
        raise ConfigError(
            f"run_dir is '{run_dir}': it holds a pipeline's run already; go on with `rlhf pipeline run FILE --resume` "
            f"(FILE may be its {CONFIG_FILE}), or choose another directory"
        )
    raise ConfigError(f"run_dir is '{run_dir}': it is not empty; choose another directory")


def _check_selection(selection: Selection, names: Sequence[str]) -> None:
    if selection.first is not None and selection.only is not None:
        raise ConfigError("--from and --only exclude each other; give one of them")
    for flag, name in (("--from", selection.first), ("--only", selection.only)):
        if name is not None and name not in names:
            raise ConfigError(f"{flag} is '{name}', which this pipeline has not{suggestion(name, names)}")


def _selected(stages: Sequence[Stage], selection: Selection) -> list[Stage]:
    if selection.only is not None:
        return [stage for stage in stages if stage.name == selection.only]
    if selection.first is not None:
        names = [stage.name for stage in stages]
        return list(stages[names.index(selection.first) :])
    return list(stages)

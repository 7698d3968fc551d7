"""The pipeline: START HERE. Every stage in its order, each done only if what it depends on has changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rlhf.config import load_toml, suggestion
from rlhf.errors import ConfigError
from rlhf_cli.local.processes import interrupt_on_signals
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.lineage import Lineage
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.plan import make_plan
from rlhf_cli.pipeline.stage_work import PipelineWork
from rlhf_cli.pipeline.stages import Stage, StageRunner
from services.trainer.state.run_dir import locked


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
    lineage = Lineage(config.run_dir)
    # The number of stages is known once there is a plan, which needs the work, which needs the phases.
    phases = Phases(console, 0)
    plan = make_plan(config, PipelineWork(config, phases, lineage), source=str(config_file))
    names = [stage.name for stage in plan.stages]
    lineage.set_order(names)
    _check_selection(selection, names)
    _check_run_dir(config.run_dir, selection)
    phases.total = len(_selected(plan.stages, selection))
    with interrupt_on_signals(), locked(config.run_dir, who="pipeline"):
        (config.run_dir / "pipeline.toml").write_bytes(config_file.read_bytes())
        runner = StageRunner(lineage, phases.say)
        for stage in _selected(plan.stages, selection):
            with phases.phase(stage.name):
                runner.bring_up_to_date(stage, force=selection.first is not None or selection.only is not None)


def _selected(stages: Sequence[Stage], selection: Selection) -> list[Stage]:
    if selection.only is not None:
        return [stage for stage in stages if stage.name == selection.only]
    if selection.first is not None:
        names = [stage.name for stage in stages]
        return list(stages[names.index(selection.first) :])
    return list(stages)


def _check_selection(selection: Selection, names: Sequence[str]) -> None:
    if selection.first is not None and selection.only is not None:
        raise ConfigError("--from and --only exclude each other; give one of them")
    for flag, name in (("--from", selection.first), ("--only", selection.only)):
        if name is not None and name not in names:
            raise ConfigError(f"{flag} is '{name}', which this pipeline has not{suggestion(name, names)}")


def _check_run_dir(run_dir: Path, selection: Selection) -> None:
    """Raises ConfigError for a directory that would be written into by mistake."""
    may_go_on = selection.resume or selection.first is not None or selection.only is not None
    if may_go_on or not run_dir.exists() or not any(run_dir.iterdir()):
        return
    if (run_dir / "lineage.json").exists():
        raise ConfigError(f"run_dir is '{run_dir}': it holds a pipeline's run already; go on with --resume")
    raise ConfigError(f"run_dir is '{run_dir}': it is not empty; choose another directory")

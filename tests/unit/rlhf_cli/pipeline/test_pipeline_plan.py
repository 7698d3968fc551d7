"""Which stages a configuration comes to, what flows between them, and which configurations are refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console

from rlhf.config import load_toml, load_values
from rlhf.errors import ConfigError
from rlhf_cli.pipeline.config import PipelineConfig
from rlhf_cli.pipeline.phases import Phases
from rlhf_cli.pipeline.pipeline import Pipeline, Selection, run_pipeline
from rlhf_cli.pipeline.plan import Plan
from rlhf_cli.pipeline.stages import Stage
from services.trainer.trainings import TRAININGS
from tests.support.paths import ROOT

QUIET = Console(file=io.StringIO())


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    for name in ("prompts", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    (tmp_path / "model").mkdir()
    return {
        "run_dir": str(tmp_path / "run"),
        "model": str(tmp_path / "model"),
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "heldout_path": str(tmp_path / "heldout.jsonl")},
    }


def plan(values: dict[str, Any], **tables: Any) -> Plan:
    return plan_of(load_values(PipelineConfig, {**values, **tables}, "p.toml"))


def plan_of(config: PipelineConfig) -> Plan:
    return Pipeline(config, Selection(resume=True), Phases(QUIET), source="p.toml").plan


def names(plan: Plan) -> list[str]:
    return [stage.name for stage in plan.stages]


def stage(plan: Plan, name: str) -> Stage:
    return next(each for each in plan.stages if each.name == name)


def test_ppo_and_dpo_start_from_sft_and_learn_from_the_same_pairs(values: dict[str, Any], tmp_path: Path) -> None:
    made = plan(values, sft={"data": {"path": "demos"}}, reward_model={}, ppo={}, dpo={"dpo": {"beta": 0.3}})
    assert names(made) == ["sft", "sample", "label", "reward_model", "ppo", "dpo", "evaluate", "export"]
    run = tmp_path / "run"
    assert stage(made, "reward_model").inputs == {
        "model.path": run / "sft/run/final",
        "data.path": run / "label/pairs.jsonl",
    }
    assert stage(made, "ppo").inputs == {
        "model.path": run / "sft/run/final",
        "prompts.path": tmp_path / "prompts.jsonl",
        "critic.path": run / "reward_model/run/model",
        "reward model": run / "reward_model/run/model",
    }
    assert stage(made, "dpo").inputs == stage(made, "reward_model").inputs
    assert stage(made, "dpo").settings == {"dpo.beta": 0.3, "model.dtype": "bfloat16"}
    assert stage(made, "dpo").command == f"rlhf train dpo --config {run}/dpo/config.toml"
    assert set(stage(made, "evaluate").inputs) >= {"policy start", "policy ppo", "policy dpo", "reward model"}
    assert stage(made, "export").inputs == {"policy dpo": run / "dpo/run/final"}


def test_every_training_has_a_table(values: dict[str, Any]) -> None:
    for training in TRAININGS.values():
        config = load_values(PipelineConfig, {**values, training.stage: {"run": 1}}, "p.toml")
        assert config.table(training.stage) == {"run": 1}
        assert [each.stage for each in TRAININGS.values() if config.table(each.stage) is not None] == [training.stage]


def test_without_a_learner_from_pairs_nothing_is_sampled_or_labelled(values: dict[str, Any]) -> None:
    assert names(plan(values, services={"reward_target": "judge:1"}, grpo={})) == ["grpo", "evaluate", "export"]


def test_artifacts_take_the_place_of_stages(values: dict[str, Any], tmp_path: Path) -> None:
    made = plan(
        values,
        label={"artifact": str(tmp_path / "mine.jsonl")},
        reward_model={"artifact": str(tmp_path / "rm")},
        ppo={"training": {"steps": 3}},
    )
    assert names(made) == ["label", "reward_model", "ppo", "evaluate", "export"]
    assert [each.name for each in made.stages if each.is_given] == ["label", "reward_model"]
    # The folder is not there yet, so it is no input; bringing the stage up to date says so.
    assert stage(made, "evaluate").settings["rule"] is None  # people chose, not the simulated labeller


def test_a_stage_that_is_switched_off_is_left_out(values: dict[str, Any]) -> None:
    made = plan(
        values, sft={"enabled": False}, reward_model={}, evaluate={"enabled": False}, export={"enabled": False}, ppo={}
    )
    assert names(made) == ["sample", "label", "reward_model", "ppo"]


def test_an_ensemble_is_gathered_in_a_folder_and_its_first_member_is_the_critic(
    values: dict[str, Any], tmp_path: Path
) -> None:
    made = plan(values, reward_model={"ensemble": {"members": 3}}, ppo={})
    assert stage(made, "reward_model").output == tmp_path / "run/reward_model/ensemble"
    assert stage(made, "ppo").inputs["critic.path"] == tmp_path / "run/reward_model/ensemble/model-0"
    assert stage(made, "ppo").inputs["reward model"] == tmp_path / "run/reward_model/ensemble"
    assert stage(made, "ppo").settings["reward_combine"] == "mean"


def test_what_is_trained_against_a_reward_model_without_a_critic_is_made_from_it_too(
    values: dict[str, Any], tmp_path: Path
) -> None:
    made = plan(values, reward_model={}, rloo={})
    assert stage(made, "rloo").inputs["reward model"] == tmp_path / "run/reward_model/run/model"


def test_a_critic_that_is_a_head_needs_no_reward_model_to_start_from(values: dict[str, Any]) -> None:
    made = plan(values, reward_model={}, ppo={"critic": {"kind": "head"}})
    assert "critic.path" not in stage(made, "ppo").inputs


def test_addresses_are_no_settings_but_the_reward_that_is_trained_against_is(values: dict[str, Any]) -> None:
    def settings(**services: object) -> dict[str, Any]:
        made = plan(values, services={"reward_target": "judge:1", **services}, rloo={})
        return dict(stage(made, "rloo").settings)

    assert settings() == settings(policy_targets=["a:1", "b:1"], reference_target="c:1")
    assert settings() != settings(reward_target="other:1")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"ppo": {}}, r"\[ppo\]: there is nothing to train against; add a table \[reward_model\]"),
        ({"dpo": {"dpo": {"betta": 1}}}, r"p\.toml \[dpo\]: unknown key 'dpo\.betta'; did you mean 'beta'"),
        ({"dpo": {}, "export": {"policy": "ppo"}}, "export.policy is 'ppo', which is not trained here; known: 'dpo'"),
        ({"dpo": {}, "sample": {"enabled": False}}, "the simulated labeller needs completions; give sample.artifact"),
        ({"dpo": {}, "label": {"noise_rate": 0.7}}, r"label\.noise_rate is 0\.7"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_started(
    values: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(values, **tables)


def test_an_evaluation_needs_prompts_of_its_own(values: dict[str, Any]) -> None:
    del values["prompts"]["heldout_path"]
    with pytest.raises(ConfigError, match=r"prompts\.heldout_path is missing"):
        plan(values, dpo={})
    assert names(plan(values, dpo={}, evaluate={"enabled": False})) == ["sample", "label", "dpo", "export"]


def test_a_run_directory_is_not_written_into_by_mistake(values: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "p.toml"
    config.write_text(tomli_w.dumps({**values, "dpo": {"dpo": {"beta": 0.1}}}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="it is not empty; choose another directory"):
        run_pipeline(config, Selection(), QUIET)
    with pytest.raises(ConfigError, match="--only is 'ppo', which this pipeline has not"):
        run_pipeline(config, Selection(only="ppo"), QUIET)
    with pytest.raises(ConfigError, match="exclude each other"):
        run_pipeline(config, Selection(only="dpo", first="dpo"), QUIET)


def test_the_example_is_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = plan_of(load_toml(PipelineConfig, ROOT / "examples/pipeline.toml"))
    assert names(made) == ["label", "reward_model", "ppo", "dpo", "evaluate", "export"]

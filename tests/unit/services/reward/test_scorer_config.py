"""Sums, judges and own scorers in the configuration, from every source, and what LoadModel changes in it."""

from pathlib import Path

import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from services.reward.config import RewardConfig
from services.reward.scorers.config import ScorerConfig, reloaded, scorer_config

SUM = """
[scorer]
kind = "sum"
[[scorer.components]]
name = "model"
weight = 0.5
kind = "model"
path = "/models/a"
[[scorer.components]]
name = "short"
kind = "length"
target_length = 50
"""


def load(*argv: str, toml: str = "", folder: Path | None = None) -> RewardConfig:
    arguments = list(argv)
    if folder is not None:
        (folder / "reward.toml").write_text(toml)
        arguments += ["--config", str(folder / "reward.toml")]
    return load_config(RewardConfig, prog="rlhf-reward", argv=arguments, env_prefix="RLHF_REWARD")


def test_a_sum_is_read_from_toml(tmp_path: Path):
    components = load(toml=SUM, folder=tmp_path).scorer.components
    assert [(each.name, each.weight, each.kind) for each in components] == [
        ("model", 0.5, "model"),
        ("short", 1.0, "length"),
    ]
    assert (components[0].path, components[1].target_length) == ("/models/a", 50)


def test_the_components_of_the_environment_replace_those_of_the_file_and_flags_replace_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RLHF_REWARD__SCORER__COMPONENTS", '[{"name": "b", "kind": "sentiment"}]')
    assert [each.name for each in load(toml=SUM, folder=tmp_path).scorer.components] == ["b"]
    flag = '[{"name": "c", "kind": "length", "weight": -1}]'
    assert load("--scorer.components", flag, toml=SUM, folder=tmp_path).scorer == scorer_config(
        kind="sum", components=[{"name": "c", "kind": "length", "weight": -1}]
    )


def test_a_heldout_scorer_has_flags_and_variables_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLHF_REWARD__WATCH__HELDOUT__KIND", "length")
    heldout = load("--scorer.kind", "sentiment", "--watch.heldout.target_length", "7").watch.heldout
    assert heldout == scorer_config(kind="length", target_length=7)
    monkeypatch.setenv("RLHF_REWARD__WATCH__HELDOUT__KNID", "length")
    with pytest.raises(ConfigError, match="HELDOUT__KNID: unknown key 'knid'; did you mean 'kind'"):
        load("--scorer.kind", "sentiment")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_length", "target_lenght", "unknown key 'scorer.components.1.target_lenght'; did you mean 'target_le"),
        ("weight = 0.5", "weight = nan", "scorer.components.0.weight is nan; it should be a finite number"),
        ("weight = 0.5", "weight = inf", "scorer.components.0.weight is inf; it should be a finite number"),
        ('kind = "length"', 'kind = "sum"', "scorer.components.1.kind is 'sum'; it should be 'model', "),
        ('name = "short"', "", "scorer.components.1.name is required: set it in the TOML file$"),
        ('name = "short"', 'name = "model"', "scorer.components: the name 'model' is there twice; give each"),
        ('name = "short"', 'name = "two words"', "scorer.components.1.name is 'two words'"),
        ('path = "/models/a"', "", "scorer.components.0.path is ''; kind model needs the directory of a reward model"),
        ('kind = "length"', 'kind = "judge"', "scorer.components.1.judge: kind judge needs an endpoint"),
        ('kind = "length"', 'kind = "python"', "scorer.components.1.python: kind python needs a class"),
        (
            'kind = "sum"',
            'kind = "length"',
            "'scorer.components' is a key of scorer.kind sum, not of length; leave it out,",
        ),
        (
            'kind = "length"',
            'kind = "sentiment"',
            r"reward.toml: 'scorer.components.1.target_length' is a key of scorer.components.1.kind length, not of sen",
        ),
        ('kind = "length"', "", "scorer.components.1.kind is required: set it in the TOML file$"),
    ],
)
def test_a_bad_component_is_named_by_its_path(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load(toml=SUM.replace(old, new, 1), folder=tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scorer.kind", "sum"], r"scorer.components is \[\]; kind sum needs a component"),
        (
            ["--scorer.kind", "sum", "--scorer.components", '[{"name": "a", "kind": "length", "weight": 0}]'],
            "scorer.components: every weight is 0",
        ),
        (["--scorer.kind", "judge"], "^scorer.judge: kind judge needs an endpoint: --scorer.judge.endpoint"),
        (["--scorer.kind", "python"], "^scorer.python: kind python needs a class: --scorer.python.target"),
        (
            ["--scorer.kind", "length", "--scorer.pattern", "a"],
            "^the flags: 'scorer.pattern' is a key of scorer.kind pattern, not of length; leave it out, or",
        ),
        (
            ["--scorer.kind", "length", "--scorer.device", "cpu"],
            "'scorer.device' is a key of scorer.kind model or ensemble, not of length",
        ),
        (["--scorer.kind", "lenght"], "^the flags: scorer.kind is 'lenght'; it should be 'model', 'ensemble', 'sent"),
        (["--scorer.path", "a"], "^scorer.kind is required: set it in the TOML file or as --scorer.kind"),
        ([], "^scorer.kind is required: set it in the TOML file or as --scorer.kind"),
        (
            ["--scorer.kind", "length", "--scorer.knid", "a"],
            "unknown flag '--scorer.knid'; did you mean '--scorer.ki",
        ),
        (
            ["--scorer.kind", "length", "--watch.heldout.kind", "length", "--watch.heldout.path", "a"],
            "^the flags: 'watch.heldout.path' is a key of watch.heldout.kind model, not of length",
        ),
        (["--scorer.kind", "length", "--models.allowed_roots", "models"], "'models' is not an absolute path"),
    ],
)
def test_a_scorer_that_lacks_what_its_kind_needs_is_refused(argv: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(*argv)


def test_a_model_gets_its_new_path_and_keeps_the_rest():
    config = scorer_config(kind="model", path="/a", dtype="float32")
    assert reloaded(config, ["/b"], "") == scorer_config(kind="model", path="/b", dtype="float32")


def test_an_ensemble_gets_as_many_paths_as_it_has_members():
    config = scorer_config(kind="ensemble", paths=["/a", "/b"], combine="worst")
    assert reloaded(config, ["/c", "/d"], "") == scorer_config(kind="ensemble", paths=["/c", "/d"], combine="worst")


def test_the_named_component_of_a_sum_gets_the_path(tmp_path: Path):
    config = load(toml=SUM, folder=tmp_path).scorer
    model, short = reloaded(config, ["/b"], "model").components
    assert (model.path, model.weight) == ("/b", 0.5)
    assert short == config.components[1]
    assert config.components[0].path == "/models/a"  # the one in use is not touched


@pytest.mark.parametrize(
    ("config", "paths", "component", "message"),
    [
        (
            scorer_config(kind="model", path="/a"),
            ["/b", "/c"],
            "",
            "model_paths has 2 entries; the scorer is of kind ",
        ),
        (scorer_config(kind="ensemble", paths=["/a", "/b"]), ["/c"], "", "model_paths has 1 entries; .* and takes 2"),
        (scorer_config(kind="ensemble", paths=["/a", "/b"]), ["/c", "/c"], "", "model_paths has '/c' twice"),
        (scorer_config(kind="length"), ["/b"], "", "the scorer is of kind length, which has no checkpoint to load"),
        (
            scorer_config(kind="model", path="/a"),
            ["/b"],
            "x",
            "component is 'x', but the scorer is no sum: .* leave it",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_words(
    config: ScorerConfig, paths: list[str], component: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        reloaded(config, paths, component)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("", "component is ''; name the part of the sum that has checkpoints: 'model'"),
        ("modle", "component is 'modle'; name the part of the sum that has checkpoints: 'model'"),
        ("short", "component 'short' is of kind length, which has no checkpoint to load"),
    ],
)
def test_a_sum_has_to_be_told_which_component(tmp_path: Path, component: str, message: str):
    with pytest.raises(ConfigError, match=message):
        reloaded(load(toml=SUM, folder=tmp_path).scorer, ["/b"], component)

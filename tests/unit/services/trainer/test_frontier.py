"""The reward-KL frontier: points from evaluations, the table and the plot."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rlhf.errors import ConfigError
from services.trainer.evaluation.frontier import markdown_table, plot_frontier, read_points


def summary(score: float, kl: float) -> dict[str, object]:
    def interval(mean: float) -> dict[str, object]:
        return {"mean": mean, "half_width": 0.1, "count": 8}

    measures = {"reward/true": score, "reward/reward": 2 * score, "kl": kl, "num_tokens": 20.0}
    return {"summary": {name: interval(value) for name, value in measures.items()}, "dropped": {}}


def write(path: Path, evaluations: dict[str, object]) -> Path:
    path.write_text(json.dumps({"evaluations": evaluations}))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    first = {"ppo:0.03@14": summary(0.5, 4.0), "start": summary(0.2, 0.0), "dpo:0.1": summary(0.4, 6.0)}
    second = {"dpo:0.3": summary(0.3, 2.0), "start": summary(0.9, 9.0), "dpo:0.03": summary(0.45, 12.0)}
    return [write(tmp_path / "a.json", first), write(tmp_path / "b.json", second)]


def test_points_of_several_files_are_sorted_by_family_and_kl_and_each_counts_once(files: list[Path]) -> None:
    points = read_points(files, score="true", training_reward="reward")
    assert [point.label for point in points] == [
        "start",
        "dpo, beta 0.3",
        "dpo, beta 0.1",
        "dpo, beta 0.03",
        "ppo, kl_coef 0.03, step 14",
    ]
    assert points[0].score.mean == 0.2  # as the first file has it


def test_the_table_has_a_row_for_each_policy(files: list[Path]) -> None:
    lines = markdown_table(read_points(files, score="true", training_reward="reward")).splitlines()
    assert len(lines) == 2 + 5
    assert lines[2] == "| start | 0.00 ± 0.10 | 0.200 ± 0.100 | +0.40 ± 0.10 | 20.0 |"


def test_the_plot_is_an_image_that_is_not_empty(files: list[Path], tmp_path: Path) -> None:
    points = read_points(files, score="true", training_reward="reward")
    plot_frontier(points, tmp_path / "frontier.png", score="true")
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.size == (1200, 750)
        assert len(image.convert("RGB").getcolors(100_000) or []) > 50


def test_a_name_or_score_that_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    unnamed = write(tmp_path / "a.json", {"my policy": summary(0.1, 1.0)})
    with pytest.raises(ConfigError, match=r"'my policy' is no name of the form FAMILY\[:COEFFICIENT\]"):
        read_points([unnamed], score="true", training_reward="reward")
    named = write(tmp_path / "b.json", {"dpo:0.1": summary(0.1, 1.0)})
    with pytest.raises(ConfigError, match="has no score by 'gold'; it has: true, reward"):
        read_points([named], score="gold", training_reward="reward")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ConfigError, match="not the summary of an evaluation"):
        read_points([tmp_path / "c.json"], score="true", training_reward="reward")

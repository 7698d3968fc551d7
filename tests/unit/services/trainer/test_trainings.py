"""The list of trainings names what is there, and the pages name every variant of DPO."""

from pathlib import Path
from pkgutil import resolve_name

import pytest

from rlhf.algorithms.variants import VARIANTS
from services.trainer.trainings import ONLINE, TRAININGS, Training

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_every_row_names_what_is_there(training: Training) -> None:
    assert "run_dir" in training.config_class.model_fields
    assert callable(resolve_name(training.run))
    assert training.is_online == (training.name in ONLINE)
    if training.is_online:
        assert getattr(training.config_class, "algorithm") == training.name  # noqa: B009  (Section has none)
        assert {"units", "estimate", "loss", "describe"} <= set(dir(resolve_name(training.algorithm)))


def test_every_variant_of_dpo_is_in_the_pages() -> None:
    page = (ROOT / "docs/training.md").read_text()
    assert [name for name in VARIANTS if f"`{name}`" not in page] == []

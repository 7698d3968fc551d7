"""What an offline training shows, on a terminal and without one."""

from io import StringIO

from rich.console import Console

from services.trainer.telemetry.terminal import FitProgress


def show_steps(*, terminal: bool) -> str:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=120)
    with FitProgress(console, title="DPO", total=100) as progress:
        for step in range(1, 5):
            progress.show(step, {"loss": step / 2, "accuracy": 0.5, "tokens_per_second": 800.0})
        progress.show(5, {"loss": 0.0, "accuracy": 1.0, "tokens_per_second": 800.0, "heldout_loss": 0.25})
    return output.getvalue()


def test_without_a_terminal_about_fifty_lines_show_means_over_the_last_steps() -> None:
    # Every second step of 100. Losses 0.5, 1, 1.5, 2: their means are 0.75 after two and 1.25 after four.
    assert show_steps(terminal=False).splitlines() == [
        "DPO step 2/100  loss 0.750  accuracy 50%  800 tokens/s",
        "DPO step 4/100  loss 1.250  accuracy 50%  800 tokens/s",
        "step 5: heldout loss 0.250",
    ]


def test_on_a_terminal_a_bar_shows_the_steps_and_the_time_left() -> None:
    shown = show_steps(terminal=True)
    assert "5/100" in shown
    assert "loss 1.000" in shown
    assert "heldout loss 0.250" in shown

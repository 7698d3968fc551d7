"""The fleet as a run sees it: which replicas have its weights, what do pushes cost, who waits for whom?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import RATE, Panels, by_run, make_board, run_choice
from deploy.monitoring.panels import stat_panel, time_series

NONE = f"0 * {by_run('rlhf_trainer_step')}"
"""Where a counter has no series before it first counts."""


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "fleet",
        "Fleet of a run",
        "What a run sends to its policy replicas and gets from them: pushes, lag, idle time, lost prompts.",
        [run_choice()],
        [*_stats(), *_replicas(), *_pushes(), *_waiting(), *_losses()],
    )


def _of_run(expression: str, *labels: str) -> str:
    """Returns a rate of the trainer's, or a gauge with labels, by run and those labels."""
    kept = ", ".join(("run", *labels))
    return f'sum by ({kept}) ({expression} * on (job, instance) group_left (run) rlhf_trainer_run_info{{run=~"$run"}})'


def _rate(metric: str, *labels: str) -> str:
    return _of_run(f"rate({metric}[{RATE}])", *labels)


def _stats() -> Panels:
    return [
        stat_panel(
            "Replicas ready",
            "Policy replicas that have the run's newest weights and get its prompts.",
            "short",
            (by_run('rlhf_trainer_replicas{state="ready"}'), "{{run}}"),
            steps=((None, "red"), (1, "green")),
            width=6,
        ),
        stat_panel(
            "Set aside or away",
            "Replicas that the run does without: they do not answer, or cannot take its weights. Its log says why.",
            "short",
            (_of_run('rlhf_trainer_replicas{state=~"away|set_aside"}'), "{{run}}"),
            steps=((None, "green"), (1, "orange")),
            width=6,
        ),
        stat_panel(
            "Changed by a step",
            "Share of the weights' elements whose bits the newest step changed. A patch brings these alone.",
            "percentunit",
            (by_run("rlhf_trainer_push_changed_fraction"), "{{run}}"),
            decimals=2,
            width=6,
        ),
        stat_panel(
            "Lag",
            "Mean over all tokens trained on: how many versions older than the trained weights were those that sampled "
            "them. At most training.max_policy_lag.",
            "short",
            (f"{_of_run('rlhf_trainer_policy_lag_sum')} / {_of_run('rlhf_trainer_policy_lag_count')}", "{{run}}"),
            decimals=2,
            width=6,
        ),
    ]


def _replicas() -> Panels:
    return [
        time_series(
            "Version of each replica",
            "The weights that the run knows a replica to serve. A line that stays behind is set aside or away.",
            "short",
            (_of_run("rlhf_trainer_replica_version", "replica"), "{{run}} {{replica}}"),
        ),
        time_series(
            "Replicas by state",
            "joining: being brought to the newest weights. ready: gets prompts. away: does not answer. set_aside: "
            "answers, but cannot take the weights.",
            "short",
            (_of_run("rlhf_trainer_replicas", "state"), "{{run}} {{state}}"),
            low=0,
            stacked=True,
        ),
        time_series(
            "Pause of each replica",
            "How long the newest push kept a replica from sampling.",
            "s",
            (_of_run("rlhf_trainer_replica_pause_seconds", "replica"), "{{run}} {{replica}}"),
            low=0,
        ),
    ]


def _pushes() -> Panels:
    seconds = _rate("rlhf_trainer_push_seconds_sum", "encoding")
    count = _rate("rlhf_trainer_push_seconds_count", "encoding")
    return [
        time_series(
            "Bytes pushed",
            "Bytes of weights sent for each second, by replica and encoding. Patches are a hundredth of full pushes "
            "where learning rates are those of RL.",
            "Bps",
            (_rate("rlhf_trainer_push_bytes_total", "replica", "encoding"), "{{run}} {{replica}} {{encoding}}"),
            low=0,
            stacked=True,
        ),
        time_series(
            "Time of a push",
            "Mean time until a replica served what was pushed to it, by encoding.",
            "s",
            (f"{seconds} / ({count} > 0)", "{{run}} {{encoding}}"),
            low=0,
        ),
        time_series(
            "Failed pushes",
            "Pushes that a replica did not take, for each second.",
            "suffix: pushes/s",
            (f"{_rate('rlhf_trainer_push_failures_total', 'replica')} or {NONE}", "{{run}} {{replica}}"),
            low=0,
        ),
    ]


def _waiting() -> Panels:
    return [
        time_series(
            "Who waits",
            "Share of a step in which the trainer waited for rollouts, and in which a replica had nothing to sample. "
            "Both high with a lag of 0 is normal; training.max_policy_lag brings both down.",
            "percentunit",
            (by_run("rlhf_trainer_trainer_idle_fraction"), "{{run}} trainer idle"),
            (by_run("rlhf_trainer_generator_idle_fraction"), "{{run}} generators idle"),
            width=12,
            low=0,
            high=1,
        ),
        time_series(
            "Tokens by lag",
            "Tokens trained on for each second, by how many versions older than the trained weights were those that "
            "sampled them (at most le).",
            "suffix: tokens/s",
            (_rate("rlhf_trainer_policy_lag_bucket", "le"), "{{run}} lag at most {{le}}"),
            width=12,
            low=0,
        ),
    ]


def _losses() -> Panels:
    return [
        time_series(
            "Prompts asked for again",
            "Prompts given to another replica because theirs was lost, or again to a replica that was full. None is "
            "lost or trained on twice.",
            "suffix: prompts/s",
            (_rate("rlhf_trainer_prompts_redispatched_total"), "{{run}} to another replica"),
            (_rate("rlhf_trainer_prompts_retried_total"), "{{run}} again"),
            width=12,
            low=0,
        ),
        time_series(
            "Rollouts dropped",
            "Rollouts not trained on, for each second, by reason. policy_too_old: sampled by weights older than "
            "training.max_policy_lag allows.",
            "suffix: rollouts/s",
            (f"{_rate('rlhf_trainer_rollouts_dropped_total', 'reason')} or {NONE}", "{{run}} {{reason}}"),
            width=12,
            low=0,
        ),
    ]

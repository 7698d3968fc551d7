"""The run at a glance: does it learn, what does it cost in KL, where does its time go?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import OURS, Panels, by_run, make_board, run_choice
from deploy.monitoring.panels import GOOD, stat_panel, time_series

STATE_COLORS = {
    ".*: failed": "red",
    ".*: (waiting|paused)": "orange",
    ".*: (running|starting)": "green",
    ".*: finished": "blue",
}
STEP_SECONDS = by_run("avg_over_time(rlhf_trainer_step_seconds[30m])")
"""A step's usual time."""
PARTS = {
    "fleet_push_seconds": "push",
    "generate_seconds": "sampling",
    "logprobs_seconds": "log-probabilities",
    "values_seconds": "values",
    "update_seconds": "update",
}
"""Times of a step that follow one another."""


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "run",
        "Run",
        "One or several training runs: state, reward, KL, length, evaluation, losses and time.",
        [run_choice()],
        [*_progress(), *_warnings(), *_goals(), *_learning(), *_health(), *_time()],
    )


def _progress() -> Panels:
    step, planned = by_run("rlhf_trainer_step"), by_run("rlhf_trainer_steps_planned")
    return [
        stat_panel(
            "State",
            "What each run is doing. waiting: a service that it needs is away.",
            "short",
            (f"{by_run('rlhf_trainer_state', labels=['state'])} == 1", "{{run}}: {{state}}"),
            names=True,
            steps=GOOD,
            colors=STATE_COLORS,
            no_value="no run",
        ),
        stat_panel(
            "Progress", "Steps done, of those planned.", "percentunit", (f"{step} / {planned}", "{{run}}"), decimals=0
        ),
        stat_panel(
            "Time left",
            "Steps that are left, times the mean time of a step in the last half hour.",
            "s",
            (f"({planned} - {step}) * {STEP_SECONDS}", "{{run}}"),
            decimals=0,
        ),
    ]


def _warnings() -> Panels:
    return [
        stat_panel(
            "KL of its budget",
            "KL to the reference as a share of watch.kl_budget. Above 1 an alert fires.",
            "percentunit",
            (f"{by_run('rlhf_trainer_kl')} / {by_run('rlhf_trainer_kl_budget')}", "{{run}}"),
            steps=((None, "green"), (0.8, "orange"), (1.0, "red")),
            decimals=0,
        ),
        stat_panel(
            "Since the last step",
            "Time since a step ended, in units of a step's usual time. Above 10 something hangs.",
            "suffix: steps",
            (f"(time() - {by_run('rlhf_trainer_last_step_timestamp_seconds')}) / {STEP_SECONDS}", "{{run}}"),
            steps=((None, "green"), (5, "orange"), (10, "red")),
            decimals=1,
        ),
        stat_panel(
            "Alerts firing",
            "Alerts of all services and runs; the runbook in docs/operations.md says what to do.",
            "short",
            (f'count(ALERTS{{{OURS}, alertstate="firing"}}) or vector(0)', "alerts"),
            steps=((None, "green"), (1, "red")),
        ),
    ]


def _goals() -> Panels:
    return [
        time_series(
            "Reward",
            "Mean reward of a step's completions, and how far they spread. A spread of 0 teaches nothing.",
            "none",
            (by_run("rlhf_trainer_reward_mean"), "{{run}} mean"),
            (by_run("rlhf_trainer_reward_std"), "{{run}} standard deviation"),
        ),
        time_series(
            "KL to the reference",
            "How far the policy has moved, in nats per completion (k1). The dashed line is watch.kl_budget.",
            "suffix: nats",
            (by_run("rlhf_trainer_kl"), "{{run}}"),
            (by_run("rlhf_trainer_kl_budget"), "{{run}} budget"),
            limits=[".* budget"],
        ),
        time_series(
            "Completion length",
            "Mean tokens of a completion, and the share that ended by themselves. Length that runs away with the "
            "reward is the commonest hack.",
            "suffix: tokens",
            (by_run("rlhf_trainer_completion_tokens_mean"), "{{run}} tokens"),
            (by_run("rlhf_trainer_stopped_fraction"), "{{run}} ended by themselves"),
            low=0,
            right=(".* themselves", "percentunit"),
        ),
    ]


def _learning() -> Panels:
    return [
        time_series(
            "Evaluation",
            "Held-out prompts: the reward that is trained on, and the gold reward that is not. Reward up while gold "
            "goes down is reward hacking.",
            "none",
            (by_run("rlhf_trainer_evaluation_reward_mean"), "{{run}} reward"),
            (by_run("rlhf_trainer_evaluation_gold_reward_mean"), "{{run}} gold"),
        ),
        time_series(
            "Losses",
            "Loss of the policy, and of PPO's critic. The policy's need not fall; the critic's should.",
            "none",
            (by_run("rlhf_trainer_policy_loss"), "{{run}} policy"),
            (by_run("rlhf_trainer_value_loss"), "{{run}} critic"),
            right=(".* critic", "none"),
        ),
        time_series(
            "Entropy",
            "Entropy of the next token, in nats. A fall to 0 means that the policy says one thing only.",
            "suffix: nats",
            (by_run("rlhf_trainer_entropy"), "{{run}}"),
            low=0,
        ),
    ]


def _health() -> Panels:
    dropped, rollouts = by_run("rlhf_trainer_dropped_rollouts"), by_run("rlhf_trainer_rollouts")
    return [
        time_series(
            "Size of updates",
            "KL from the policy before an update to the one after it, per token, and the share of tokens that the clip "
            "decided. Both large: lower the learning rate.",
            "suffix: nats/token",
            (by_run("rlhf_trainer_approx_kl"), "{{run}} KL"),
            (by_run("rlhf_trainer_clip_fraction"), "{{run}} clipped"),
            low=0,
            right=(".* clipped", "percentunit"),
        ),
        time_series(
            "Trainer against policy service",
            "KL from the distribution that was sampled from to the trainer's own, per token (k3). About 0.001 in "
            "bfloat16; more means that the two do not run the same weights or the same arithmetic.",
            "suffix: nats/token",
            (by_run("rlhf_trainer_sampler_mismatch_k3"), "{{run}}"),
            low=0,
            steps=((None, "green"), (0.01, "orange"), (0.1, "red")),
        ),
        time_series(
            "Rollouts not trained on",
            "Share of a step's rollouts that got no usable score or log-probability. The run fails above "
            "training.max_dropped_fraction.",
            "percentunit",
            (f"{dropped} / ({rollouts} + {dropped})", "{{run}}"),
            low=0,
            steps=((None, "green"), (0.02, "orange"), (0.1, "red")),
        ),
    ]


def _time() -> Panels:
    scoring = " > ".join(by_run(f"rlhf_trainer_{name}_wait_seconds") for name in ("score", "reference"))
    reference = by_run("rlhf_trainer_reference_wait_seconds")
    waits = (f"({scoring}) or {reference}", "{{run}} scores and reference")
    parts = [(by_run(f"rlhf_trainer_{name}"), f"{{{{run}}}} {text}") for name, text in PARTS.items()]
    return [
        time_series(
            "Where a step's time goes",
            "Parts of a step one after the other; what the dashed line has above them is the rest. Scores and "
            "reference count from the last rollout on.",
            "s",
            *parts[:2],
            waits,
            *parts[2:],
            (by_run("rlhf_trainer_step_seconds"), "{{run}} whole step"),
            width=16,
            low=0,
            stacked=True,
            limits=[".* whole step"],
        ),
        time_series(
            "Speed",
            "Tokens of prompts and completions for each second of a step, and completion tokens for each second of "
            "sampling.",
            "suffix: tokens/s",
            (by_run("rlhf_trainer_tokens_per_second"), "{{run}} whole step"),
            (by_run("rlhf_trainer_generate_tokens_per_second"), "{{run}} sampling"),
            low=0,
        ),
    ]

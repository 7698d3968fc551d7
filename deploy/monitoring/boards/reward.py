"""What rewards are given, how sure they are, and whether the policy has begun to hack them."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import RATE, Panels, by_run, make_board, only, run_choice
from deploy.monitoring.boards.reward_watch import watch_panels
from deploy.monitoring.panels import heatmap_panel, stat_panel, time_series

HERE = 'job="$job"'


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "reward",
        "Reward",
        "Rewards of one service: distribution, disagreement, latency; signs of reward hacking by run and by caller.",
        [only("job", "Reward service", "label_values(rlhf_reward_items_total, job)", "reward"), run_choice()],
        [*_stats(), *_rewards(), *_answers(), *_hacking(), *watch_panels(HERE)],
    )


def _stats() -> Panels:
    return [
        stat_panel(
            "Scored in the last hour",
            "Items answered with a reward.",
            "short",
            (f"sum by (job) (increase(rlhf_reward_items_total{{{HERE}}}[1h]))", "{{job}}"),
            width=6,
            decimals=0,
        ),
        stat_panel(
            "Not scored in the last hour",
            "Items answered with an error; a run drops those rollouts.",
            "short",
            (f"sum(increase(rlhf_reward_errors_total{{{HERE}}}[1h])) or vector(0)", "errors"),
            width=6,
            decimals=0,
            steps=((None, "green"), (1, "orange")),
        ),
        stat_panel(
            "Gold lost since its best",
            "How far the gold reward of the evaluation is below its best in the chosen time. Growing while the reward "
            "rises: stop the run at the best.",
            "none",
            (
                f"{by_run('max_over_time(rlhf_trainer_evaluation_gold_reward_mean[$__range])')}"
                f" - {by_run('rlhf_trainer_evaluation_gold_reward_mean')}",
                "{{run}}",
            ),
            width=6,
            decimals=2,
            no_value="no gold reward",
        ),
        stat_panel(
            "Reward follows length",
            "Rank correlation of reward and completion length in the newest step. Near 1, writing more is all that "
            "pays.",
            "none",
            (by_run("rlhf_trainer_reward_length_correlation"), "{{run}}"),
            width=6,
            decimals=2,
            steps=((None, "orange"), (-0.7, "green"), (0.7, "orange")),
        ),
    ]


def _rewards() -> Panels:
    score = f"sum by (le) (rate(rlhf_reward_score_bucket{{{HERE}}}[{RATE}]))"
    spread = f"sum by (le) (rate(rlhf_reward_spread_bucket{{{HERE}}}[{RATE}]))"
    return [
        heatmap_panel(
            "Rewards given",
            "How many rewards fell into each bucket. All in the last bucket: the scale of the reward is spent.",
            "none",
            (f"sum by (le) (increase(rlhf_reward_score_bucket{{{HERE}}}[{RATE}]))", "{{le}}"),
        ),
        time_series(
            "Quantiles of the reward",
            "Half of the rewards lie below the median, a tenth below the lower and above the upper line.",
            "none",
            *[
                (f"histogram_quantile({quantile}, {score}) > -Inf", name)
                for quantile, name in ((0.9, "90 %"), (0.5, "median"), (0.1, "10 %"))
            ],
            width=12,
        ),
        time_series(
            "Disagreement of the ensemble",
            "Standard deviation of the members' rewards for one item. It grows where the policy leaves what the reward "
            "models were trained on.",
            "none",
            *[
                (f"histogram_quantile({quantile}, {spread}) >= 0", name)
                for quantile, name in ((0.9, "90 %"), (0.5, "median"))
            ],
            (by_run("rlhf_trainer_reward_spread_mean"), "{{run}} mean of a step"),
            width=12,
            low=0,
        ),
        time_series(
            "Reward and gold",
            "Held-out prompts. Both up: the policy gets better. Reward up and gold down: it exploits the reward.",
            "none",
            (by_run("rlhf_trainer_evaluation_reward_mean"), "{{run}} reward"),
            (by_run("rlhf_trainer_evaluation_gold_reward_mean"), "{{run}} gold"),
            width=12,
        ),
    ]


def _answers() -> Panels:
    by_version = f"sum by (le, model_version) (rate(rlhf_reward_score_bucket{{{HERE}}}[{RATE}]))"
    by_phase = f"sum by (le, phase) (rate(rlhf_reward_phase_seconds_bucket{{{HERE}}}[{RATE}]))"
    none = 'label_replace(vector(0), "code", "none", "", "")'
    return [
        time_series(
            "Median of each model version",
            "A new version whose rewards lie elsewhere is not comparable with the one before.",
            "none",
            (f"histogram_quantile(0.5, {by_version}) > -Inf", "{{model_version}}"),
        ),
        time_series(
            "Latency by phase",
            "95 % take less: tokenise is a call's preparation, queue an item's wait for its batch, model a batch.",
            "s",
            (f"histogram_quantile(0.95, {by_phase}) >= 0", "{{phase}}"),
            low=0,
        ),
        time_series(
            "Items without a reward",
            "By error class: too_long and invalid_item are the caller's, the others the scorer's.",
            "short",
            (f"sum by (code) (increase(rlhf_reward_errors_total{{{HERE}}}[{RATE}])) or {none}", "{{code}}"),
            low=0,
        ),
    ]


def _hacking() -> Panels:
    return [
        time_series(
            "Reward against length",
            "Rank correlation of reward and completion length over a step's completions: 1 is length alone, 0 is none.",
            "none",
            (by_run("rlhf_trainer_reward_length_correlation"), "{{run}}"),
            low=-1,
            high=1,
            steps=((None, "green"), (0.7, "orange")),
        ),
        time_series(
            "Length on held-out prompts",
            "Mean tokens of the evaluation's completions.",
            "suffix: tokens",
            (by_run("rlhf_trainer_evaluation_completion_tokens_mean"), "{{run}}"),
            low=0,
        ),
        time_series(
            "KL on held-out prompts",
            "KL to the reference over the evaluation's completions. Reward is paid for with KL; gold usually peaks "
            "at some KL and falls after it.",
            "suffix: nats",
            (by_run("rlhf_trainer_evaluation_kl"), "{{run}}"),
        ),
    ]

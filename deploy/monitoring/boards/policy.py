"""The policy fleet: does every replica serve the newest weights, how fast does it sample, what does a push cost?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import RATE, Panels, choice, make_board
from deploy.monitoring.panels import stat_panel, time_series

HERE = 'job="policy", instance=~"$instance"'


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "policy",
        "Policy fleet",
        "Replicas of the policy service: versions, sampling, weight pushes and the engine.",
        [choice("instance", "Instance", "label_values(rlhf_policy_version, instance)")],
        [*_stats(), *_sampling(), *_pushes(), *_engine()],
    )


def _stats() -> Panels:
    return [
        stat_panel(
            "Replicas ready",
            "Policy processes that serve.",
            "short",
            (f"sum(rlhf_ready{{{HERE}}})", "replicas"),
            steps=((None, "red"), (1, "green")),
            width=6,
        ),
        stat_panel(
            "Versions served",
            "Different versions of the weights among the replicas. More than 1 for longer than a push is skew.",
            "short",
            (
                f"count(count_values('version', rlhf_policy_version{{{HERE}}}))",
                "versions",
            ),
            steps=((None, "green"), (2, "orange")),
            width=6,
        ),
        stat_panel(
            "Behind the trainer",
            "Versions that the slowest replica is behind the newest step. 1 until the next push is normal.",
            "short",
            (f"max(rlhf_trainer_policy_version) - min(rlhf_policy_version{{{HERE}}})", "versions"),
            steps=((None, "green"), (2, "orange")),
            width=6,
            no_value="no run",
        ),
        stat_panel(
            "Failed pushes in the last hour",
            "Weight pushes that changed nothing.",
            "short",
            (f"sum(increase(rlhf_policy_push_failures_total{{{HERE}}}[1h])) or vector(0)", "failures"),
            steps=((None, "green"), (1, "red")),
            decimals=0,
            width=6,
        ),
    ]


def _sampling() -> Panels:
    return [
        time_series(
            "Version of the weights",
            "What each replica serves, and what the trainer has. The lines should lie on each other.",
            "short",
            (f"rlhf_policy_version{{{HERE}}}", "{{instance}}"),
            ("max(rlhf_trainer_policy_version)", "trainer"),
            limits=["trainer"],
        ),
        time_series(
            "Sampling speed",
            "Completion tokens sampled for each second.",
            "suffix: tokens/s",
            (f"rate(rlhf_policy_completion_tokens_total{{{HERE}}}[{RATE}])", "{{instance}}"),
            low=0,
            stacked=True,
        ),
        time_series(
            "Completions in flight",
            "Completions being sampled or waiting for it. Very unequal replicas: the calls are not balanced.",
            "short",
            (f"rlhf_policy_rollouts_in_flight{{{HERE}}}", "{{instance}}"),
            low=0,
        ),
    ]


def _pushes() -> Panels:
    seconds = f"rate(rlhf_policy_push_seconds_sum{{{HERE}}}[{RATE}])"
    count = f"rate(rlhf_policy_push_seconds_count{{{HERE}}}[{RATE}])"
    return [
        time_series(
            "How completions end",
            "Completions for each second by how they ended: stop by a stop id, length by sampling.max_new_tokens.",
            "suffix: completions/s",
            (f"sum by (finish_reason) (rate(rlhf_policy_rollouts_total{{{HERE}}}[{RATE}]))", "{{finish_reason}}"),
            low=0,
            stacked=True,
        ),
        time_series(
            "Bytes of weights received",
            "Bytes of weight pushes that took effect, for each second: full pushes, and patches of what changed.",
            "Bps",
            (
                f"sum by (instance, encoding) (rate(rlhf_policy_push_bytes_total{{{HERE}}}[{RATE}]))",
                "{{instance}} {{encoding}}",
            ),
            low=0,
        ),
        time_series(
            "Time of a push",
            "Mean by phase. stage: receiving, with verify; verify: hashing; pause: no sampling, all that the fleet "
            "notices.",
            "s",
            (f"sum by (phase) ({seconds}) / (sum by (phase) ({count}) > 0)", "{{phase}}"),
            low=0,
        ),
    ]


def _engine() -> Panels:
    return [
        time_series(
            "vLLM: requests",
            "With the vLLM engine only. Requests that the engine works on, and that wait for room in a batch. Many "
            "waiting: add replicas, or raise max_num_seqs.",
            "short",
            (f"vllm:num_requests_running{{{HERE}}}", "{{instance}} running"),
            (f"vllm:num_requests_waiting{{{HERE}}}", "{{instance}} waiting"),
            width=12,
            low=0,
        ),
        time_series(
            "vLLM: cache of keys and values",
            "With the vLLM engine only. Share of the cache in use. At 1 the engine throws requests out and computes "
            "them again.",
            "percentunit",
            (f"vllm:kv_cache_usage_perc{{{HERE}}}", "{{instance}}"),
            width=12,
            low=0,
            high=1,
            steps=((None, "green"), (0.95, "orange")),
        ),
    ]

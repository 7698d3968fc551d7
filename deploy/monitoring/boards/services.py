"""Are all services there, do they answer, how fast, and what waits?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import RATE, Panels, choice, make_board
from deploy.monitoring.panels import stat_panel, state_panel, time_series

HERE = 'job=~"$job", instance=~"$instance"'
WORK = f'{HERE}, method!="GetModel"'
"""Calls that work: GetModel only asks which weights are served."""
SERVER_ERRORS = 'code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"'
"""Codes that are the service's fault, not the caller's."""
BATCHED = ("reward", "reference")
"""Services that queue and batch."""


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "services",
        "Services",
        "Every service's calls: readiness, rate, errors, latency, queue and batches.",
        [
            choice("job", "Service", "label_values(rlhf_ready, job)"),
            choice("instance", "Instance", 'label_values(rlhf_ready{job=~"$job"}, instance)'),
        ],
        [*_stats(), *_calls(), *_batches(), *_model()],
    )


def either(suffix: str, *, rate: bool = False) -> str:
    """Returns the query of a metric that each batching service has under a prefix of its own."""
    series = [f"rlhf_{service}_{suffix}{{{HERE}}}" for service in BATCHED]
    return " or ".join(f"rate({each}[{RATE}])" if rate else each for each in series)


def error_ratio(labels: str) -> str:
    """Returns the share of calls that failed through the service's fault; 0, not nothing, while none did."""
    every = f"sum by ({labels}) (rate(rlhf_rpc_requests_total{{{HERE}}}[{RATE}]))"
    failed = f"sum by ({labels}) (rate(rlhf_rpc_requests_total{{{HERE}, {SERVER_ERRORS}}}[{RATE}]))"
    return f"({failed} or 0 * {every}) / ({every} > 0)"


def _stats() -> Panels:
    return [
        stat_panel(
            "Ready",
            "Processes that serve, of those that Prometheus reaches.",
            "percentunit",
            (f"sum by (job) (rlhf_ready{{{HERE}}}) / count by (job) (rlhf_ready{{{HERE}}})", "{{job}}"),
            width=12,
            steps=((None, "red"), (0.5, "orange"), (1, "green")),
            decimals=0,
            no_value="no service",
        ),
        stat_panel(
            "Queue, of its limit",
            "Items that wait, as a share of what may wait; beyond it calls are refused with RESOURCE_EXHAUSTED.",
            "percentunit",
            (f"max by (job) (({either('queue_items')}) / ({either('queue_limit_items')}))", "{{job}}"),
            width=12,
            steps=((None, "green"), (0.5, "orange"), (0.8, "red")),
            decimals=0,
        ),
        state_panel(
            "Readiness",
            "When each process could serve calls. Gaps: Prometheus did not reach it.",
            (f"max by (job, instance) (rlhf_ready{{{HERE}}})", "{{job}} {{instance}}"),
            texts={"0": ("not ready", "red"), "1": ("ready", "green")},
        ),
    ]


def _calls() -> Panels:
    buckets = f"sum by (job, method, le) (rate(rlhf_rpc_seconds_bucket{{{WORK}}}[{RATE}]))"
    return [
        time_series(
            "Calls",
            "Calls that ended, for each second; GetModel, which only asks, is left out.",
            "reqps",
            (f"sum by (job, method) (rate(rlhf_rpc_requests_total{{{WORK}}}[{RATE}]))", "{{job}} {{method}}"),
            low=0,
        ),
        time_series(
            "Failed calls",
            "Share of calls that failed through the service's own fault (INTERNAL, UNKNOWN, UNAVAILABLE, "
            "DEADLINE_EXCEEDED, DATA_LOSS).",
            "percentunit",
            (error_ratio("job, method"), "{{job}} {{method}}"),
            low=0,
            steps=((None, "green"), (0.05, "red")),
        ),
        time_series(
            "Latency, 95th percentile",
            "95 % of calls took less. A streaming call lasts until its last message: sampling takes as long as its "
            "longest completion.",
            "s",
            (f"histogram_quantile(0.95, {buckets})", "{{job}} {{method}}"),
            low=0,
        ),
        time_series(
            "Calls in flight",
            "Calls being served at the moment.",
            "short",
            (f"sum by (job, method) (rlhf_rpc_in_flight{{{WORK}}})", "{{job}} {{method}}"),
            low=0,
        ),
    ]


def _batches() -> Panels:
    return [
        time_series(
            "Queue",
            "Items that wait for a batch. The autoscaler adds replicas by this.",
            "short",
            (f"sum by (job) ({either('queue_items')})", "{{job}}"),
            low=0,
        ),
        time_series(
            "Batch size",
            "Mean items of a batch. 1 with a queue: batches are full by tokens; 1 without: callers come one by one.",
            "suffix: items",
            (
                f"sum by (job) ({either('batch_items_sum', rate=True)})"
                f" / (sum by (job) ({either('batch_items_count', rate=True)}) > 0)",
                "{{job}}",
            ),
            low=0,
        ),
        time_series(
            "Time in the model",
            "Mean time of a batch in the model, and the share of each second that a process spends there. A share "
            "near 1 is a service at its limit.",
            "s",
            (
                f"sum by (job) ({either('model_seconds_sum', rate=True)})"
                f" / (sum by (job) ({either('model_seconds_count', rate=True)}) > 0)",
                "{{job}} batch",
            ),
            (f"avg by (job) ({either('model_seconds_sum', rate=True)})", "{{job}} busy"),
            low=0,
            right=(".* busy", "percentunit"),
        ),
    ]


def _model() -> Panels:
    return [
        time_series(
            "Tokens scored",
            "Tokens put through the model for each second, padding not counted.",
            "suffix: tokens/s",
            (f"sum by (job) ({either('tokens_total', rate=True)})", "{{job}}"),
            low=0,
        ),
        time_series(
            "Padding",
            "Share of the work of a batch that is padding.",
            "percentunit",
            (
                f"sum by (job) ({either('padding_ratio_sum', rate=True)})"
                f" / (sum by (job) ({either('padding_ratio_count', rate=True)}) > 0)",
                "{{job}}",
            ),
            low=0,
            high=1,
        ),
    ]

"""Metrics of the policy service. vLLM's own (vllm:*) appear beside them on the same port."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from rlhf.serving.calls import SECONDS_BUCKETS


class PolicyMetrics:
    """Names are rlhf_policy_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.rollouts = Counter(
            "rlhf_policy_rollouts_total", "Completions sampled whole.", ["finish_reason"], registry=registry
        )
        self.completion_tokens = Counter(
            "rlhf_policy_completion_tokens_total", "Tokens of completions sampled whole.", registry=registry
        )
        self.in_flight = Gauge(
            "rlhf_policy_rollouts_in_flight", "Completions being sampled or waiting.", registry=registry
        )
        self.policy_version = Gauge("rlhf_policy_version", "Version of the weights served.", registry=registry)
        self.push_seconds = Histogram(
            "rlhf_policy_push_seconds",
            "Time of a weight push by phase: stage (receiving, with verify), verify (hashing), pause (no sampling).",
            ["phase"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.pushes = Counter(
            "rlhf_policy_pushes_total",
            "Weight pushes that took effect, by encoding (full, sparse_patch).",
            ["encoding"],
            registry=registry,
        )
        self.push_bytes = Counter(
            "rlhf_policy_push_bytes_total",
            "Bytes received in pushes that took effect, by encoding.",
            ["encoding"],
            registry=registry,
        )
        self.push_changed_fraction = Gauge(
            "rlhf_policy_push_changed_fraction",
            "How many of the model's elements the last push brought: 1 for a full one.",
            registry=registry,
        )
        self.push_failures = Counter(
            "rlhf_policy_push_failures_total",
            "Weight pushes that changed nothing, or failed in the engine, by status code.",
            ["reason"],
            registry=registry,
        )

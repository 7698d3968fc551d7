"""The compose stack as a user brings it up: training through its containers, its Prometheus, and a crash."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.compose_stack import FILES, PROJECT, ROOT, ComposeStack, build_local_prometheus, can_have, run
from tests.deploy.prometheus_api import Prometheus, wait_until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

MONITORING = ROOT / "deploy" / "monitoring"
QUERIES = MONITORING / "queries.py"
SERVICES = ("policy", "reward", "reward-gold", "reference")
PROMPTS_PER_STEP, GROUP_SIZE = 8, 2
RUN = """
run_dir = "/runs/set-by-compose"
[model]
path = "/models/policy"
[critic]
kind = "head"
[prompts]
path = "prompts.jsonl"
[services]
policy_targets = ["policy:50051"]
reward_target = "reward:50052"
reference_target = "reference:50053"
[sampling]
max_new_tokens = 128
[training]
steps = {steps}
prompts_per_step = 8
group_size = 2
[optimizer]
learning_rate = 1e-3
[checkpoint]
every_steps = 0
[evaluation]
prompts_path = "held_out.jsonl"
every_steps = 1
num_prompts = 4
gold_target = "reward-gold:50052"
[server]
linger_seconds = 15
"""


@dataclass(frozen=True)
class Training:
    """A run that ended, and what is left of it."""

    rows: list[dict[str, float]]
    """metrics.jsonl."""
    start: float
    """Unix time before it started."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The stack with tiny models, up and healthy; nothing of it is left afterwards."""
    committed = yaml.safe_load(run(["docker", "compose", "--file", str(FILES[0]), "config"]))["services"]
    stack = ComposeStack(
        {
            "COMPOSE_PROFILES": "cpu,gold",
            "RLHF_RUN_DIR": str(tmp_path_factory.mktemp("run")),
            "TEST_PROMETHEUS_CONFIG": str(reading_every_second(tmp_path_factory.mktemp("config"))),
        }
    )
    if not can_have(committed["prometheus"]["image"]):
        stack.variables["RLHF_PROMETHEUS_IMAGE"] = build_local_prometheus(tmp_path_factory.mktemp("prometheus"))
    services = [*SERVICES, "prometheus"]
    if can_have(committed["grafana"]["image"]):
        services.append("grafana")
    else:
        print("no Grafana: its image is not here and no registry gives it")
    try:
        stack.compose("up", "--detach", "--wait", "--wait-timeout", "300", *services)
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "100", check=False))
        stack.down()
    assert not run(["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"])
    assert not run(["docker", "volume", "ls", "--quiet", "--filter", f"name={PROJECT}_"])


@pytest.fixture(scope="module")
def prometheus(stack: ComposeStack) -> Prometheus:
    """The stack's Prometheus."""
    return stack.prometheus()


@pytest.fixture(scope="module")
def three_steps(stack: ComposeStack) -> Training:
    """A finished run of three steps."""
    start = time.time()
    start_trainer(stack, "three", steps=3)
    return finish(stack, "three", start)


def reading_every_second(folder: Path) -> Path:
    """Returns a copy of the committed prometheus.yml for steps that take a second or two."""
    config = folder / "prometheus.yml"
    config.write_text(
        (FILES[0].parent / "prometheus" / "prometheus.yml").read_text().replace("interval: 5s", "interval: 1s")
    )
    config.chmod(0o644)
    return config


def start_trainer(stack: ComposeStack, name: str, steps: int) -> None:
    folder = Path(stack.variables["RLHF_RUN_DIR"])
    folder.chmod(0o755)  # the containers' user reads it
    (folder / "run.toml").write_text(RUN.format(steps=steps))
    for file, count in (("prompts.jsonl", steps * PROMPTS_PER_STEP), ("held_out.jsonl", 4)):
        (folder / file).write_text("".join(json.dumps({"prompt": f"{file} {n}"}) + "\n" for n in range(count)))
    stack.compose("up", "--detach", "trainer", RLHF_RUN=name)


def finish(stack: ComposeStack, name: str, start: float) -> Training:
    wait_until(lambda: not stack.inspect("trainer")["State"]["Running"], f"the end of run {name}", 300)
    assert stack.inspect("trainer")["State"]["ExitCode"] == 0, stack.compose("logs", "--no-color", "trainer")
    metrics = stack.read("trainer", f"/runs/{name}/metrics.jsonl")
    return Training([json.loads(line) for line in metrics.splitlines()], start)


def samples(stack: ComposeStack, name: str, step: int) -> list[dict[str, Any]]:
    """Returns what the journal says that a step was trained on."""
    text = stack.read("trainer", f"/runs/{name}/journal/step-{step:06d}.rank-0.jsonl")
    records = [json.loads(line.partition(" ")[2]) for line in text.splitlines()]
    return [record for record in records if record["kind"] == "sample"]


def test_three_steps_of_ppo_go_through_the_containers(three_steps: Training) -> None:
    assert [row["step"] for row in three_steps.rows] == [1, 2, 3]
    assert all(row["rollouts"] == PROMPTS_PER_STEP * GROUP_SIZE for row in three_steps.rows)
    assert all(row["dropped_rollouts"] == 0 for row in three_steps.rows)


def test_containers_can_write_nowhere_and_have_no_rights(stack: ComposeStack, three_steps: Training) -> None:
    for service in (*SERVICES, "trainer"):
        described = stack.inspect(service)
        host = described["HostConfig"]
        assert described["Config"]["User"].split(":")[0] not in ("", "0", "root"), service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["NanoCpus"] > 0, service
        published = [port["HostIp"] for ports in host["PortBindings"].values() for port in ports]
        assert set(published) <= {"127.0.0.1"}, service


def test_prometheus_sees_every_service_and_the_run(prometheus: Prometheus, three_steps: Training) -> None:
    targets = prometheus.targets()
    assert {job: targets.get(job) for job in SERVICES} == {job: {"up"} for job in SERVICES}
    now = time.time()
    assert prometheus.has_data("rlhf_trainer_step == 3", three_steps.start, now)
    assert prometheus.has_data('rlhf_trainer_run_info{run="three", algorithm="ppo"}', three_steps.start, now)
    assert prometheus.has_data('rlhf_trainer_state{state="finished"} == 1', three_steps.start, now)


def test_every_panel_of_every_dashboard_has_data(prometheus: Prometheus, three_steps: Training) -> None:
    minutes = (time.time() - three_steps.start) / 60
    # The GPU dashboard has no data without GPUs: promtool tests its queries on synthetic series.
    print(run([sys.executable, str(QUERIES), "--prometheus", prometheus.url, "--minutes", f"{minutes:.1f}"]))


def test_every_rule_is_loaded_and_none_fails(prometheus: Prometheus) -> None:
    written = [
        rule.get("alert") or rule["record"]
        for path in sorted(MONITORING.glob("rules/*.yaml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]
    assert written
    wait_until(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), "a look at every rule", 60)
    rules = prometheus.rules()
    assert Counter(rule["name"] for rule in rules) == Counter(written)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_a_killed_policy_restarts_and_the_run_trains_on_every_prompt_once(
    stack: ComposeStack, prometheus: Prometheus, three_steps: Training
) -> None:
    steps, start = 8, time.time()
    start_trainer(stack, "broken", steps)
    step = 'rlhf_trainer_step * on (instance) rlhf_trainer_run_info{run="broken"}'
    wait_until(lambda: (prometheus.value(step) or 0) >= 2, "the second step", 120)
    stack.crash("policy")
    wait_until(lambda: stack.inspect("policy")["RestartCount"] == 1, "the restart of the policy", 30)
    wait_until(lambda: stack.is_healthy("policy"), "the policy's recovery", 120)
    rows = finish(stack, "broken", start).rows
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all(row["dropped_rollouts"] == 0 for row in rows)
    assert stack.inspect("trainer")["RestartCount"] == 0  # it waited for the policy
    prompts = Counter(
        tuple(sample["rollout"]["prompt_ids"])
        for step in range(1, steps + 1)
        for sample in samples(stack, "broken", step)
    )
    assert len(prompts) == steps * PROMPTS_PER_STEP
    assert set(prompts.values()) == {GROUP_SIZE}

"""`rlhf submit` and `rlhf runs`: trainings on a Kubernetes cluster."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli.commands.output import print_json, print_table, stderr, stdout
from rlhf_cli.commands.targets import JsonOption
from rlhf_cli.errors import CommandError, UsageError, print_error

if TYPE_CHECKING:
    from rlhf_cli.cluster.connection import Cluster
    from rlhf_cli.cluster.run_spec import RunSpec
    from rlhf_cli.cluster.runs import PodLook, RunLook

KubeconfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Which kubeconfig. Default: as kubectl takes it, or the pod's own.")
]
ContextOption = Annotated[str | None, typer.Option(metavar="NAME", help="Which context of the kubeconfig.")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Default: the context's or the pod's, or rlhf.")
]
app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The run's name.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Show its log until it ends.")]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long it may take to save and end.")
]
STYLES = {"running": "green", "finished": "green", "pending": "yellow", "stopping": "yellow", "failed": "red"}
STARTING = ("ContainerCreating", "PodInitializing")
STOP_SECONDS = 960.0
"""More than the PodTemplate of deploy/k8s gives a run to save itself."""


def open_cluster(kubeconfig: Path | None, context: str | None, namespace: str | None) -> "Cluster":
    """Returns the cluster that the options name."""
    from rlhf_cli.cluster.connection import connect

    return connect(kubeconfig=kubeconfig, context=context, namespace=namespace)


def follow_run(cluster: "Cluster", name: str, node_index: int = 0) -> None:
    """Shows a run's log until its end. Raises: CommandError unless it finished."""
    from rlhf_cli.cluster.follow import Follower

    follower = Follower(
        cluster,
        name,
        show_line=lambda line: stdout.out(line, highlight=False),
        note=print_error,
        node_index=node_index,
    )
    try:
        state = follower.follow()
    except KeyboardInterrupt:
        raise CommandError(f"no longer followed; the run goes on. `rlhf runs stop {name}` stops it") from None
    if state != "finished":
        raise CommandError(f"run '{name}' {'failed' if state == 'failed' else 'was stopped'}")


def submit(
    algorithm: Annotated[str, typer.Argument(help="As after `rlhf train`: ppo, grpo, sft, dpo, reward-model, ...")],
    config: Annotated[Path, typer.Option(metavar="FILE", help="TOML file with the configuration.")],
    name: Annotated[str | None, typer.Option(help="The run's name. Default: the file's, without .toml.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A small file that the configuration names by a relative path; repeatable."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Pods that train together.")] = 1,
    processes_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks in each pod. Default: the pod's GPUs, or 1.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The trainer's image, instead of the deployment's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the manifests; create nothing.")] = False,
    template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --dry-run: YAML with the PodTemplate; needs no cluster."),
    ] = None,
    follow: FollowOption = False,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Train on a Kubernetes cluster: check the configuration, create the run, and follow it if asked to."""
    from rlhf_cli.cluster.run_spec import read_run

    if template is not None and not dry_run:
        raise UsageError("--template goes with --dry-run; a run takes the PodTemplate of the deployment")
    if follow and dry_run:
        raise UsageError("--follow and --dry-run exclude each other: a dry run creates nothing to follow")
    spec = read_run(
        algorithm,
        config,
        name=name,
        files=file or (),
        nodes=nodes,
        processes_per_node=processes_per_node,
        image=image,
    )
    if dry_run and template is not None:
        stdout.out(_manifests_from_file(spec, template), end="", highlight=False)
        return
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    if dry_run:
        from rlhf_cli.cluster.manifests import run_manifests, to_yaml

        stdout.out(to_yaml(run_manifests(spec, runs.trainer_template(cluster))), end="", highlight=False)
        return
    runs.submit(cluster, spec)
    stderr.print(f"run {spec.name} is submitted to namespace {cluster.namespace}", markup=False)
    if follow:
        follow_run(cluster, spec.name)
    else:
        stderr.print(f"`rlhf runs logs {spec.name} --follow` shows it", markup=False)


def _manifests_from_file(spec: "RunSpec", template: Path) -> str:
    from rlhf_cli.cluster.manifests import run_manifests, template_in, to_yaml

    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--template is '{template}': {error.strerror}") from None
    return to_yaml(run_manifests(spec, template_in(text, str(template))))


@app.command("list")
def list_command(
    as_json: JsonOption = False,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """List the runs of the namespace, the newest first."""
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    looks = runs.list_runs(cluster)
    if as_json:
        for look in looks:
            print_json(_plain(look))
    else:
        rows = [
            [look.name, look.algorithm, look.state, _age(look.created), str(look.restarts), _why(look)]
            for look in looks
        ]
        print_table(["name", "algorithm", "state", "age", "restarts", ""], rows, styles=STYLES)


@app.command()
def status(
    name: NameArgument,
    as_json: JsonOption = False,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Show a run, its pods, and what is wrong. Exits 1 if it failed, or if something keeps it from starting."""
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    look = runs.look_at(cluster, name)
    if as_json:
        print_json(_plain(look))
    else:
        nodes = f" on {look.nodes} nodes" if look.nodes > 1 else ""
        stdout.print(f"{look.name}: {look.algorithm}{nodes}, {look.state}, {_age(look.created)} old", markup=False)
        if look.pods:
            print_table(["pod", "phase", "reason", "node", "age"], _pod_rows(look.pods))
    for problem in look.problems:
        print_error(problem.text)
        for line in runs.last_lines(cluster, problem):
            stderr.print(f"  {line}", soft_wrap=True, markup=False)
    if look.problems:
        raise CommandError(f"run '{name}' is {look.state}")


@app.command()
def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    node: Annotated[int, typer.Option(min=0, help="Whose log: the index of one of several nodes.")] = 0,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Show the trainer's log, of its newest pod; with --follow that of every pod, and of those to come."""
    cluster = open_cluster(kubeconfig, context, namespace)
    if follow:
        follow_run(cluster, name, node)
        return

    from rlhf_cli.cluster import runs

    for line in runs.newest_log(cluster, name, node):
        stdout.out(line, highlight=False)


@app.command()
def stop(
    name: NameArgument,
    wait: WaitOption = STOP_SECONDS,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Stop a run: it saves a checkpoint, from which `rlhf runs resume` goes on."""
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    with stderr.status(f"stopping {name}"):
        was_there = runs.stop(cluster, name, wait_seconds=wait)
    stderr.print(f"run {name} {'is' if was_there else 'was already'} stopped", markup=False)


@app.command()
def resume(
    name: NameArgument,
    follow: FollowOption = False,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Go on with a stopped or failed run from its last checkpoint."""
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    before = runs.resume(cluster, name)
    stderr.print(f"run {name} goes on; it was {before}", markup=False)
    if follow:
        follow_run(cluster, name)


@app.command()
def delete(
    name: NameArgument,
    wait: WaitOption = STOP_SECONDS,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Stop a run and forget it. What it wrote to the volume stays."""
    cluster = open_cluster(kubeconfig, context, namespace)

    from rlhf_cli.cluster import runs

    with stderr.status(f"deleting {name}"):
        runs.delete(cluster, name, wait_seconds=wait)
    stderr.print(f"run {name} is deleted; what it wrote stays in /runs/{name} of the volume", markup=False)


def _pod_rows(pods: Sequence["PodLook"]) -> list[list[str]]:
    return [[pod.name, pod.phase, pod.reason, pod.machine, _age(pod.created)] for pod in pods]


def _why(look: "RunLook") -> str:
    """Returns the words on a row: what the newest pod waits for, or how the last one ended."""
    reasons = [pod.reason for pod in reversed(look.pods) if pod.reason not in ("", *STARTING)]
    return reasons[0] if reasons and look.state in ("pending", "failed") else ""


def _plain(look: "RunLook") -> dict[str, Any]:
    """Returns a run as JSON has it."""
    values = asdict(look)
    for entry in (values, *values["pods"]):
        entry["created"] = entry["created"].isoformat() if entry["created"] else None
    values["problems"] = [problem.text for problem in look.problems]
    return values


def _age(created: datetime | None) -> str:
    """Returns how long ago that was, in the largest unit of which there are two."""
    if created is None:
        return ""
    seconds = int((datetime.now(UTC) - created).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"

"""Options of the commands that talk to a Kubernetes cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.commands.output import CommandError, print_error, stdout

if TYPE_CHECKING:
    from rlhf_cli.cluster.connection import Cluster

KubeconfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Which kubeconfig. Default: as kubectl takes it, or the pod's own.")
]
ContextOption = Annotated[str | None, typer.Option(metavar="NAME", help="Which context of the kubeconfig.")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Default: the context's or the pod's, or rlhf.")
]


def open_cluster(kubeconfig: Path | None, context: str | None, namespace: str | None) -> "Cluster":
    """Returns the cluster that the options name."""
    from rlhf_cli.cluster.connection import Place, connect

    return connect(Place(kubeconfig=kubeconfig, context=context, namespace=namespace))


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

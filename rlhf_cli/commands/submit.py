"""`rlhf submit`: a training run on a Kubernetes cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.commands.cluster_options import ContextOption, KubeconfigOption, NamespaceOption, follow_run, open_cluster
from rlhf_cli.commands.output import UsageError, stderr, stdout

if TYPE_CHECKING:
    from rlhf_cli.cluster.run_spec import RunSpec


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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its log until it ends.")] = False,
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
        from rlhf_cli.cluster.manifests import run_manifests
        from rlhf_cli.cluster.yaml_text import to_yaml

        stdout.out(to_yaml(run_manifests(spec, runs.trainer_template(cluster))), end="", highlight=False)
        return
    runs.submit(cluster, spec)
    stderr.print(f"run {spec.name} is submitted to namespace {cluster.namespace}", markup=False)
    if follow:
        follow_run(cluster, spec.name)
    else:
        stderr.print(f"`rlhf runs logs {spec.name} --follow` shows it", markup=False)


def _manifests_from_file(spec: "RunSpec", template: Path) -> str:
    from rlhf_cli.cluster.manifests import run_manifests
    from rlhf_cli.cluster.yaml_text import template_in, to_yaml

    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--template is '{template}': {error.strerror}") from None
    return to_yaml(run_manifests(spec, template_in(text, str(template))))

"""Manifests as YAML."""

from rlhf_cli.cluster.errors import ClusterError, missing_extra
from rlhf_cli.cluster.manifests import TRAINER, Manifest

try:
    import yaml
except ImportError as error:
    raise missing_extra(error) from None


def to_yaml(manifests: list[Manifest]) -> str:
    """Returns manifests as one YAML stream, texts of several lines as blocks."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def template_in(text: str, source: str) -> Manifest:
    """Returns the trainer's PodTemplate in a YAML stream. Raises: ClusterError if there is none."""
    try:
        objects = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError as error:
        raise ClusterError(f"{source}: cannot be read as YAML: {error}") from None
    for each in objects:
        if each.get("kind") == "PodTemplate" and each.get("metadata", {}).get("name") == TRAINER:
            return each
    raise ClusterError(f"{source}: holds no PodTemplate named '{TRAINER}'; take deploy/k8s/base/trainer.yaml")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and indents lists, as manifests are written by hand."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

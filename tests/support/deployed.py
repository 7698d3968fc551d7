"""What a service of the directory must have elsewhere: its own files, the command line, images, compose, Kubernetes."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from rlhf.serving.directory import Service

COMPONENT = "app.kubernetes.io/component"


def missing(services: Iterable[Service], root: Path) -> list[str]:
    """Returns a sentence for everything that a service of the directory lacks in the files below root."""
    compose = (_compose, _compose_tls, _compose_monitoring)
    kubernetes = (_pod, _addresses, _network, _certificates, _alerts)
    return [
        f"{service.name}: {sentence}"
        for service in services
        for check in (_code, _command_line, _image, *compose, *kubernetes)
        for sentence in check(service, root)
    ]


def _code(service: Service, root: Path) -> Iterator[str]:
    file = f"{service.module.replace('.', '/')}.py"
    if 'if __name__ == "__main__":' not in _text(root / file):
        yield f"{file} is not there, or does not run by itself"
    contract = f"protos/rlhf/v1/{service.name}.proto"
    if f"service {service.full_name.rpartition('.')[2]} {{" not in _text(root / contract):
        yield f"{contract} has no service {service.full_name.rpartition('.')[2]}"
    client = f"rlhf/client/{service.name}.py"
    if f'full_name = "{service.full_name}"' not in _text(root / client):
        yield f"{client} has no client of {service.full_name}"


def _command_line(service: Service, root: Path) -> Iterator[str]:
    scripts = tomllib.loads(_text(root / "pyproject.toml"))["project"]["scripts"]
    if scripts.get(service.command) != f"{service.module}:main":
        yield f"pyproject.toml has no script {service.command} = {service.module}:main"
    file = "rlhf_cli/commands/status.py"
    functions = [each for each in ast.parse(_text(root / file)).body if isinstance(each, ast.FunctionDef)]
    (status,) = (each for each in functions if each.name == "status")
    if service.name not in {argument.arg for argument in status.args.args}:
        yield f"{file}: `rlhf status` has no option --{service.name}"


def _image(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/docker/Dockerfile"
    stages = re.split(r"^(?=FROM )", _text(root / file), flags=re.MULTILINE)
    stage = next((each for each in stages if re.match(rf"FROM \S+ AS {service.name}\n", each)), None)
    if stage is None:
        yield f"{file} has no target {service.name}"
    else:
        ports = [service.port, *([service.http_port] if service.http_port else []), service.metrics_port]
        command = ["rlhf"] if service.is_run else [service.command]
        lines = [
            f"ENV RLHF_PROBE_TARGET={service.local_target}",
            f"EXPOSE {' '.join(map(str, ports))}",
            f'ENTRYPOINT ["tini", "--", "{command[0]}"]',
        ]
        lines += [] if service.is_run else [f'CMD ["--config", "/etc/rlhf/{service.name}.toml"]']
        yield from (f"{file}: target {service.name} lacks {line}" for line in lines if line not in stage.splitlines())
        if f'image.description="{service.purpose}"' not in stage:
            yield f'{file}: target {service.name} is not described as "{service.purpose}"'
    file = "scripts/images"
    names = re.search(r"\$\{@:-(.*?)\}", _text(root / file))
    if names is None or service.name not in names[1].split():
        yield f"{file} does not build {service.name}"


def _compose(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/compose/compose.yaml"
    services = yaml.safe_load(_text(root / file))["services"]
    for name in (service.name, f"{service.name}-gpu"):
        if name not in services:
            yield f"{file} has no service {name}"
        elif services[name]["build"]["target"] != service.name:
            yield f"{file}: {name} is built from the target {services[name]['build']['target']}"
    container: dict[str, Any] = services.get(service.name, {})
    published = {int(port.rpartition(":")[2]) for port in container.get("ports", [])}
    for port in {service.port, service.http_port or service.port} - published:
        yield f"{file}: {service.name} does not publish port {port}"
    config = f"../k8s/base/config/{service.name}.toml:/etc/rlhf/{service.name}.toml:ro"
    if not service.is_run and config not in container.get("volumes", []):
        yield f"{file}: {service.name} does not mount {config}"


def _compose_tls(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/compose/compose.tls.yaml"
    encrypted = yaml.safe_load(_text(root / file))["services"]
    for name in (service.name, f"{service.name}-gpu"):
        if name not in encrypted:
            yield f"{file} has no service {name}"
    file = "deploy/compose/make-certificates"
    if f"DNS:{service.name}," not in _text(root / file):
        yield f"{file} has no certificate for DNS:{service.name}"


def _compose_monitoring(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/compose/prometheus/prometheus.yml"
    jobs = yaml.safe_load(_text(root / file))["scrape_configs"]
    ports = [job["dns_sd_configs"][0]["port"] for job in jobs if job["job_name"] == service.name]
    if ports != [service.metrics_port]:
        yield f"{file} has no job {service.name} with port {service.metrics_port}"


def _pod(service: Service, root: Path) -> Iterator[str]:
    base = "deploy/k8s/base"
    file = f"{base}/{service.name}.yaml"
    kustomization = yaml.safe_load(_text(root / base / "kustomization.yaml"))
    if f"{service.name}.yaml" not in kustomization["resources"]:
        yield f"{base}/kustomization.yaml does not name {service.name}.yaml"
    documents = _documents(root / file)
    kinds = ("PodTemplate",) if service.is_run else ("Deployment", "StatefulSet")
    workload = next((each for each in documents if each["kind"] in kinds), None)
    if workload is None:
        yield f"{file} has no {' or '.join(kinds)} {service.name}"
    else:
        pod = workload["template"] if service.is_run else workload["spec"]["template"]
        if pod["metadata"]["labels"].get(COMPONENT) != service.name:
            yield f"{file}: the pod's label {COMPONENT} is not {service.name}"
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        wanted = {"grpc": service.port, "metrics": service.metrics_port}
        wanted |= {"http": service.http_port} if service.http_port else {}
        if ports != wanted:
            yield f"{file}: the pod's ports are {ports}, not {wanted}"


def _addresses(service: Service, root: Path) -> Iterator[str]:
    if service.is_run:
        return
    base = "deploy/k8s/base"
    file = f"{base}/{service.name}.yaml"
    documents = _documents(root / file)
    kustomization = yaml.safe_load(_text(root / base / "kustomization.yaml"))
    addresses = {each["metadata"]["name"]: each["spec"]["ports"] for each in documents if each["kind"] == "Service"}
    wanted = {service.name: service.port} | ({f"{service.name}-http": service.http_port} if service.http_port else {})
    for name, port in wanted.items():
        if port not in {each["port"] for each in addresses.get(name, [])}:
            yield f"{file} has no Service {name} with port {port}"
    config = f"config/{service.name}.toml"
    generators = {each["name"]: each.get("files", []) for each in kustomization["configMapGenerator"]}
    if config not in generators.get(f"{service.name}-config", []):
        yield f"{base}/kustomization.yaml makes no ConfigMap {service.name}-config of {config}"
    if not (root / base / config).is_file():
        yield f"{base}/{config} is not there"


def _network(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/k8s/base/network.yaml"
    specs = {each["metadata"]["name"]: each["spec"] for each in _documents(root / file)}
    scraped = {port["port"] for rule in specs["prometheus-to-metrics"]["ingress"] for port in rule["ports"]}
    if service.metrics_port not in scraped:
        yield f"{file}: prometheus-to-metrics has no port {service.metrics_port}"
    reached = {
        port["port"]
        for spec in specs.values()
        if spec["podSelector"].get("matchLabels", {}).get(COMPONENT) == service.name
        for rule in spec.get("ingress", [])
        for port in rule.get("ports", [])
    }
    if not service.is_run and service.port not in reached:
        yield f"{file} lets nobody reach port {service.port} of {service.name}"


def _certificates(service: Service, root: Path) -> Iterator[str]:
    folder = "deploy/k8s/components/mtls"
    named = {each["metadata"]["name"]: each["spec"] for each in _documents(root / folder / "certificates.yaml")}
    if service.name not in named.get(service.name, {}).get("dnsNames", []):
        yield f"{folder}/certificates.yaml has no Certificate {service.name}"
    file = f"{folder}/{'trainer' if service.is_run else 'services'}.yaml"
    if service.name not in {each["metadata"]["name"] for each in _documents(root / file)}:
        yield f"{file} has no patch of {service.name}"


def _alerts(service: Service, root: Path) -> Iterator[str]:
    file = "deploy/monitoring/rules/alerts.yaml"
    groups = yaml.safe_load(_text(root / file))["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    down = re.search(r'job=~"(.*?)"', rules["RlhfServiceDown"])
    if down is None or service.name not in down[1].split("|"):
        yield f"{file}: RlhfServiceDown does not watch the job {service.name}"
    if not service.is_run and f'absent(up{{job="{service.name}"}})' not in rules["RlhfServiceAbsent"]:
        yield f"{file}: RlhfServiceAbsent does not watch the job {service.name}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(_text(path)) if each]

"""The Kubernetes pod that this process runs in, for clients of the cluster's API. Imports nothing of Kubernetes."""

import os
from pathlib import Path

TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def is_in_pod() -> bool:
    """Returns whether this process runs in a pod with a token of its service account, by which it may log in."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (TOKEN_FOLDER / "token").is_file()


def pod_namespace() -> str:
    """Returns the namespace of the pod. Raises: OSError if this process runs in none."""
    return (TOKEN_FOLDER / "namespace").read_text().strip()

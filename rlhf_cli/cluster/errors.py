"""Errors of work with a Kubernetes cluster."""

from rlhf_cli.errors import ClusterError


class UnreachableError(ClusterError):
    """The cluster does not answer; it may do so later."""


class AbsentError(ClusterError):
    """The object does not exist."""


class ExistsError(ClusterError):
    """An object of that name exists already."""


def missing_extra(error: ImportError) -> ClusterError:
    """Returns the error for a package of the extra that is not installed."""
    return ClusterError(f"work with a cluster needs the package '{error.name}': pip install 'rlhf-services[k8s]'")

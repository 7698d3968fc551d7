"""Certificates for tests: an authority of trustme's, and what it signs, as files."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme

from rlhf.client.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE


def issue(authority: trustme.CA, folder: Path, *names: str, not_after: datetime | None = None) -> dict[str, str]:
    """Writes tls.crt, tls.key and ca.crt into a folder, over what is there; returns the variables that name them.

    Args:
        names: such as "localhost" and "127.0.0.1".
        not_after: when the certificate expires; None: not soon.
    """
    folder.mkdir(exist_ok=True)
    certificate = authority.issue_cert(*names, not_after=not_after)
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return {
        CERT_VARIABLE: str(folder / "tls.crt"),
        KEY_VARIABLE: str(folder / "tls.key"),
        CA_VARIABLE: str(folder / "ca.crt"),
    }


def http_context(variables: dict[str, str], *, shows: bool = True) -> ssl.SSLContext:
    """Returns the context of an HTTP client that trusts the authority, and shows the certificate or none."""
    context = ssl.create_default_context(cafile=variables[CA_VARIABLE])
    if shows:
        context.load_cert_chain(variables[CERT_VARIABLE], variables[KEY_VARIABLE])
    return context

"""Certificates for tests: an authority of trustme's, and what it signs, as files."""

from pathlib import Path

import trustme

from rlhf_services.common.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE


def issue(authority: trustme.CA, folder: Path, *names: str) -> dict[str, str]:
    """Writes tls.crt, tls.key and ca.crt into a folder, over what is there; returns the variables that name them.

    Args: names: such as "localhost" and "127.0.0.1".
    """
    folder.mkdir(exist_ok=True)
    certificate = authority.issue_cert(*names)
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return {
        CERT_VARIABLE: str(folder / "tls.crt"),
        KEY_VARIABLE: str(folder / "tls.key"),
        CA_VARIABLE: str(folder / "ca.crt"),
    }

"""Mutual TLS between the services, switched on by three variables: each side shows a certificate of the same authority.

The server reads its files again for every new connection, so a certificate that was renewed is shown without a restart.
A client reads them when it opens its channel, and checks that the server's certificate names the host it called.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from rlhf_services.common.errors import ConfigError

CERT_VARIABLE = "RLHF_TLS_CERT_FILE"
"""PEM: the certificate of this process, then those between it and the authority."""
KEY_VARIABLE = "RLHF_TLS_KEY_FILE"
"""PEM: its private key, not encrypted."""
CA_VARIABLE = "RLHF_TLS_CA_FILE"
"""PEM: the authority that the other side's certificate must come from."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files that the variables name."""

    cert: Path
    key: Path
    ca: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Returns certificate, key and authority as PEM. Raises: ConfigError if they cannot be used."""
        for variable, path in ((CERT_VARIABLE, self.cert), (KEY_VARIABLE, self.key), (CA_VARIABLE, self.ca)):
            try:
                path.read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"{variable} is '{path}', which cannot be read ({error.strerror}); mount the file, or unset all "
                    "three RLHF_TLS variables to go without TLS"
                ) from None
        self._require_fitting()
        return self.cert.read_bytes(), self.key.read_bytes(), self.ca.read_bytes()

    def _require_fitting(self) -> None:
        # gRPC would only say that it cannot bind, or that a handshake failed.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            raise ConfigError(
                f"{CERT_VARIABLE} '{self.cert}' and {KEY_VARIABLE} '{self.key}' are not a certificate and its key, "
                f"without a password, in PEM ({error.reason or error})"
            ) from None
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(
                f"{CA_VARIABLE} '{self.ca}' holds no certificate in PEM ({error.reason or error})"
            ) from None


def tls_files(environment: Mapping[str, str] = os.environ) -> TlsFiles | None:
    """Returns the files that the variables name, None if TLS is off. Raises: ConfigError if some are set, not all."""
    values = {name: environment.get(name, "") for name in (CERT_VARIABLE, KEY_VARIABLE, CA_VARIABLE)}
    missing = [name for name, value in values.items() if not value]
    if len(missing) == len(values):
        return None
    if missing:
        given = " and ".join(name for name, value in values.items() if value)
        raise ConfigError(f"{given} is set, but not {' and '.join(missing)}; set all three, or none to go without TLS")
    return TlsFiles(*map(Path, values.values()))


def server_credentials() -> grpc.ServerCredentials | None:
    """Returns credentials that ask every client for a certificate; None if TLS is off. Raises: ConfigError."""
    files = tls_files()
    if files is None:
        return None
    shown = files.read()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            found = files.read()
        except (ConfigError, OSError):
            return None  # In the middle of a renewal: the old one is shown until the new files fit one another.
        if found == shown:
            return None
        shown = found
        return _certificate_configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        _certificate_configuration(shown),
        renewed,  # type: ignore[arg-type]  # gRPC takes None for "no change"; its types do not say so.
        require_client_authentication=True,
    )


def channel_credentials() -> grpc.ChannelCredentials | None:
    """Returns the credentials of a client; None if TLS is off. Raises: ConfigError."""
    files = tls_files()
    if files is None:
        return None
    cert, key, ca = files.read()
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def open_blocking_channel(target: str) -> grpc.Channel:
    """Returns a channel for a single question from a thread, with TLS if it is on. Raises: ConfigError."""
    credentials = channel_credentials()
    return grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials)


def _certificate_configuration(pems: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    cert, key, ca = pems
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

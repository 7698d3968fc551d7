"""What is read from files, and read again when they change: certificates, tokens, lists of clients.

Its logger is the standard library's: the probe, which must start fast, comes by here.
"""

import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from rlhf.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = list[tuple[int, int, int] | None]
ASK_SECONDS = 1.0
"""How often the disk is asked, at most."""


class Renewed(Generic[T]):
    """A value from files. Files that cannot be used, as in the middle of a renewal, leave the value as it is."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads the value. Raises: whatever `read` raises, this first time."""
        self._paths = paths
        self._read = read
        self._seen = self._stamp()
        self._value = read()
        self._fault = ""
        self._ask_at = time.monotonic() + ASK_SECONDS

    def get(self) -> T:
        """Returns the newest value that could be used, at most a second old."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            stamp = self._stamp()
            if stamp != self._seen:
                self._renew(stamp)
        return self._value

    def _renew(self, stamp: Stamp) -> None:
        try:
            self._value = self._read()
        except (ConfigError, OSError) as error:
            # The stamp is not kept: what cannot be used now is tried again, and complained of once.
            if str(error) != self._fault:
                log.error("a changed file cannot be used; what it held before stays in force: %s", error)
            self._fault = str(error)
        else:
            log.info("took up what changed in %s", ", ".join(map(str, self._paths)))
            self._seen, self._fault = stamp, ""

    def _stamp(self) -> Stamp:
        """Returns what changes when a file is written, or replaced behind a link as Kubernetes does it."""
        stamps: Stamp = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps


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

    @property
    def paths(self) -> list[Path]:
        """All three."""
        return [self.cert, self.key, self.ca]

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


def watched_files() -> Renewed[tuple[bytes, bytes, bytes]] | None:
    """Returns certificate, key and authority as they stand, for a client; None if TLS is off. Raises: ConfigError."""
    files = tls_files()
    return None if files is None else Renewed(files.paths, files.read)


def channel_credentials(pems: tuple[bytes, bytes, bytes]) -> grpc.ChannelCredentials:
    """Returns the credentials of a client. Args: pems: certificate, key and authority."""
    cert, key, ca = pems
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def ssl_context_for_http() -> ssl.SSLContext | None:
    """Returns a server's context that asks every client for a certificate; None if TLS is off. Raises: ConfigError.

    Renewed files hold for the connections that are made from then on.
    """
    files = tls_files()
    if files is None:
        return None
    files.read()
    current = Renewed(files.paths, lambda: _http_context(files))

    def take_up(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        # Called at the start of every handshake, whether or not the client names a host.
        connection.context = current.get()

    context = _http_context(files)
    context.sni_callback = take_up
    return context


def _http_context(files: TlsFiles) -> ssl.SSLContext:
    files.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is resumed is not checked again, so that a certificate would hold for longer than it is valid.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)
    return context


def open_blocking_channel(target: str) -> grpc.Channel:
    """Returns a channel for a single question from a thread, with TLS if it is on. Raises: ConfigError."""
    files = tls_files()
    if files is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, channel_credentials(files.read()))


def _certificate_configuration(pems: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    cert, key, ca = pems
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

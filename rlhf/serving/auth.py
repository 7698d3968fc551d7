"""Who may call a service, and for what: everyone for everything, unless RLHF_AUTH_FILE lists the clients.

A client shows a bearer token, of which the file holds the SHA-256 only, or a certificate, which mutual TLS has checked.
The file is read again when it changes.
"""

import hashlib
import hmac
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.client.tls import Renewed, tls_files
from rlhf.errors import ConfigError, PermissionDeniedError, UnauthenticatedError
from rlhf.logs import get_logger
from rlhf.serving.calls import ANY_SCOPE, Authorizer, CallCredentials, Caller, clean_name
from rlhf.serving.directory import ADMIN_SCOPE, SCOPES

log = get_logger(__name__)

AUTH_VARIABLE = "RLHF_AUTH_FILE"
"""TOML: the clients of a service. Unset: everyone may do everything."""
_KEYS = frozenset({"name", "scopes", "token_sha256", "certificate"})


@dataclass(frozen=True, slots=True)
class Client:
    """One entry of the file: what somebody shows, and what it allows."""

    caller: Caller
    token_sha256: bytes | None
    """Of the token, as ASCII."""
    certificate: str | None
    """A name in the certificate: an alternative name, or the common name where there is none."""


class OpenDoor:
    """Lets everyone do everything; a caller's name is what it says itself, or its host."""

    def authorize(self, credentials: CallCredentials, scope: str) -> Caller:
        """Returns the caller, with all scopes."""
        return Caller(credentials.unchecked_name, SCOPES)


class ListedClients:
    """Lets in the clients of a list."""

    def __init__(self, clients: Sequence[Client]) -> None:
        """Args: clients: no two of them with the same token or certificate."""
        self.clients = tuple(clients)

    def authorize(self, credentials: CallCredentials, scope: str) -> Caller:
        """Returns the caller. Raises: UnauthenticatedError, PermissionDeniedError."""
        caller = self._recognise(credentials)
        if scope != ANY_SCOPE and not {scope, ADMIN_SCOPE} & caller.scopes:
            has = ", ".join(f"'{each}'" for each in sorted(caller.scopes))
            raise PermissionDeniedError(f"client '{caller.name}' has the scopes {has}; this call needs '{scope}'")
        return caller

    def _recognise(self, credentials: CallCredentials) -> Caller:
        if credentials.authorization is not None:
            return self._by_token(credentials.authorization)
        for client in self.clients:
            if client.certificate is not None and client.certificate in credentials.certificate_names:
                return client.caller
        shown = f" (it names {', '.join(credentials.certificate_names)})" if credentials.certificate_names else ""
        raise UnauthenticatedError(
            f"neither a token nor a certificate of a known client{shown}; send the header 'authorization: Bearer TOKEN'"
            " (our clients take the token from the file that RLHF_TOKEN_FILE names)"
        )

    def _by_token(self, authorization: str) -> Caller:
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer":
            raise UnauthenticatedError("the header 'authorization' is not of the form 'Bearer TOKEN'")
        digest = hashlib.sha256(token.strip().encode(errors="surrogatepass")).digest()
        found = None
        # All are compared, and each in constant time: how long it takes says nothing about what is listed.
        for client in self.clients:
            if client.token_sha256 is not None and hmac.compare_digest(client.token_sha256, digest):
                found = client.caller
        if found is None:
            raise UnauthenticatedError(
                "the token is not known; its SHA-256 has to be listed in the service's auth file"
            )
        return found


class WatchedClients:
    """Lets in the clients of a file, as it stands."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises: ConfigError."""
        self._listed = Renewed([path], lambda: ListedClients(read_clients(path)))

    @property
    def has_tokens(self) -> bool:
        """Whether any client shows a token."""
        return any(client.token_sha256 is not None for client in self._listed.get().clients)

    def authorize(self, credentials: CallCredentials, scope: str) -> Caller:
        """Returns the caller. Raises: UnauthenticatedError, PermissionDeniedError."""
        return self._listed.get().authorize(credentials, scope)


def make_authorizer(environment: Mapping[str, str] = os.environ) -> Authorizer:
    """Returns what the environment asks for. Raises: ConfigError."""
    path = environment.get(AUTH_VARIABLE, "")
    if not path:
        return OpenDoor()
    clients = WatchedClients(Path(path))
    if clients.has_tokens and tls_files(environment) is None:
        log.warning("tokens travel in the clear: anyone on the way can read and use them; set the RLHF_TLS variables")
    return clients


def read_clients(path: Path) -> list[Client]:
    """Returns the clients in a file. Raises: ConfigError, which says nothing that could be a token."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{AUTH_VARIABLE} is '{path}', which cannot be read ({error.strerror}); mount the file, or unset the "
            "variable to let everyone in"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{AUTH_VARIABLE} '{path}': not UTF-8; write it anew as TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{AUTH_VARIABLE} '{path}': not TOML: {error}") from None
    entries = values.get("clients")
    if not isinstance(entries, list) or not entries or set(values) != {"clients"}:
        raise ConfigError(f"{AUTH_VARIABLE} '{path}': should hold tables [[clients]], one for each client, and no more")
    clients = [_client(entry, f"{AUTH_VARIABLE} '{path}': clients[{index}]") for index, entry in enumerate(entries)]
    for field in ("token_sha256", "certificate"):
        shown = [value for client in clients if (value := getattr(client, field)) is not None]
        for index, value in enumerate(shown):
            if value in shown[:index]:
                raise ConfigError(f"{AUTH_VARIABLE} '{path}': two clients have the same {field}; give each its own")
    return clients


def _client(entry: Any, where: str) -> Client:
    """Returns one client. Raises ConfigError; no value is named that could be a token in the wrong place."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} should be a table: write [[clients]] above its keys")
    if unknown := sorted(set(entry) - _KEYS):
        raise ConfigError(f"{where} has the unknown key '{unknown[0]}'; known: {', '.join(sorted(_KEYS))}")
    name, scopes = entry.get("name"), entry.get("scopes")
    if not isinstance(name, str) or not name or clean_name(name) != name:
        raise ConfigError(f"{where}.name should be 1 to 64 letters, digits, dots, hyphens or underscores")
    where += f" ('{name}')"
    if not isinstance(scopes, list) or not scopes or not all(isinstance(scope, str) for scope in scopes):
        raise ConfigError(f'{where}: scopes should be a list of words, such as ["score"]')
    if wrong := sorted(set(scopes) - SCOPES):
        raise ConfigError(f"{where}: there is no scope '{wrong[0]}'; known: {', '.join(sorted(SCOPES))}")
    digest, certificate = entry.get("token_sha256"), entry.get("certificate")
    if (digest is None) == (certificate is None):
        raise ConfigError(f"{where}: give either token_sha256 or certificate; a client with both needs two entries")
    if certificate is not None and (not isinstance(certificate, str) or not certificate):
        raise ConfigError(f"{where}: certificate should be a name in the client's certificate")
    caller = Caller(name, frozenset(scopes))
    return Client(caller, None if digest is None else _digest(digest, where), certificate)


def _digest(value: Any, where: str) -> bytes:
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigError(
            f"{where}: token_sha256 should be the SHA-256 of the token, 64 hexadecimal digits; `rlhf token new` makes "
            "a token and prints it"
        )
    return digest

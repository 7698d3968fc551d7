"""Mutual TLS through real sockets: who is served, who is refused, and a certificate that is renewed."""

import asyncio
import os
import socket
import ssl
import sys

import pytest
import trustme
from certificates import issue
from test_serving import ITEM, Toy

from rlhf_services.clients.reward import Reward, RewardClient
from rlhf_services.common.errors import NotReadyError
from rlhf_services.common.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE
from rlhf_services.local.supervisor import is_serving


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def variables(authority, tmp_path, monkeypatch) -> dict[str, str]:
    """A certificate for this machine, in the environment of server and clients."""
    variables = issue(authority, tmp_path / "tls", "localhost", "127.0.0.1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


async def test_clients_with_a_certificate_are_served(variables):
    async with Toy() as toy:
        await toy.server.wait_ready()
        assert (await toy.client.score([ITEM])).results == [Reward("", 1.5)]
        assert await asyncio.to_thread(is_serving, toy.server.port)
        probe = os.path.join(os.path.dirname(sys.executable), "rlhf-probe")
        process = await asyncio.create_subprocess_exec(probe, f"localhost:{toy.server.port}")
        assert await process.wait() == 0


async def test_a_client_without_a_certificate_is_refused_and_told_what_may_be_wrong(variables, monkeypatch):
    async with Toy() as toy:
        await toy.server.wait_ready()
        for name in variables:
            monkeypatch.delenv(name)
        async with RewardClient(toy.target) as client:
            with pytest.raises(NotReadyError, match=rf"reward service at {toy.target}: .*RLHF_TLS"):
                await client.score([ITEM])
        assert await asyncio.to_thread(is_serving, toy.server.port) is False


async def test_a_client_with_tls_is_told_so_by_a_server_without(authority, tmp_path, monkeypatch):
    async with Toy() as toy:
        await toy.server.wait_ready()
        for name, value in issue(authority, tmp_path / "tls", "localhost").items():
            monkeypatch.setenv(name, value)
        async with RewardClient(toy.target) as client:
            with pytest.raises(NotReadyError, match=rf"reward service at {toy.target}: .*RLHF_TLS"):
                await client.score([ITEM])


async def test_a_client_of_another_authority_is_refused(variables, tmp_path, monkeypatch):
    async with Toy() as toy:
        await toy.server.wait_ready()
        other = issue(trustme.CA(), tmp_path / "others", "localhost")
        for name, value in (other | {CA_VARIABLE: variables[CA_VARIABLE]}).items():
            monkeypatch.setenv(name, value)
        async with RewardClient(toy.target) as client:
            with pytest.raises(NotReadyError, match=rf"reward service at {toy.target}: .*RLHF_TLS"):
                await client.score([ITEM])


async def test_a_server_whose_certificate_names_another_host_is_refused(authority, tmp_path, variables):
    async with Toy() as toy:
        await toy.server.wait_ready()
        issue(authority, tmp_path / "tls", "policy")
        async with RewardClient(toy.target) as client:
            with pytest.raises(NotReadyError, match=r"Hostname Verification Check failed"):
                await client.score([ITEM])


async def test_a_renewed_certificate_is_shown_without_a_restart(authority, tmp_path, variables):
    certificate = tmp_path / "tls/tls.crt"
    context = ssl.create_default_context(cafile=variables[CA_VARIABLE])
    context.load_cert_chain(variables[CERT_VARIABLE], variables[KEY_VARIABLE])
    context.set_alpn_protocols(["h2"])
    async with Toy() as toy:
        await toy.server.wait_ready()
        first = certificate.read_text()
        assert await asyncio.to_thread(shown_certificate, toy.server.port, context) == first
        issue(authority, tmp_path / "tls", "localhost", "127.0.0.1")
        second = certificate.read_text()
        assert await asyncio.to_thread(shown_certificate, toy.server.port, context) == second != first
        # Files that do not fit one another, as in the middle of a renewal, change nothing yet.
        issue(authority, tmp_path / "third", "localhost")
        certificate.write_bytes((tmp_path / "third/tls.crt").read_bytes())
        assert await asyncio.to_thread(shown_certificate, toy.server.port, context) == second
        (tmp_path / "tls/tls.key").write_bytes((tmp_path / "third/tls.key").read_bytes())
        assert await asyncio.to_thread(shown_certificate, toy.server.port, context) == certificate.read_text()


def shown_certificate(port: int, context: ssl.SSLContext) -> str:
    """Returns the certificate, in PEM, that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")

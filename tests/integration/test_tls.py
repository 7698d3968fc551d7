"""Mutual TLS through real sockets: who is served, who is refused, and a certificate that is renewed."""

import asyncio
import os
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import trustme

from rlhf.client import Reward, RewardClient
from rlhf.client.tls import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE
from rlhf.errors import NotReadyError
from rlhf_cli.local.supervisor import is_serving
from tests.integration.test_serving import ITEM, Toy, score_one
from tests.support.certificates import http_context, issue
from tests.support.secured_service import BODY, post, secured_service


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


async def test_a_client_whose_certificate_has_expired_is_refused(authority, tmp_path, variables, monkeypatch):
    async with Toy() as toy:
        await toy.server.wait_ready()
        yesterday = datetime.now(UTC) - timedelta(days=1)
        for name, value in issue(authority, tmp_path / "old", "localhost", not_after=yesterday).items():
            monkeypatch.setenv(name, value)
        async with RewardClient(toy.target) as client:
            with pytest.raises(NotReadyError, match=rf"reward service at {toy.target}: .*RLHF_TLS"):
                await client.score([ITEM])


async def test_over_http_too_only_a_valid_certificate_of_the_authority_is_let_in(authority, tmp_path, variables):
    """TLS itself refuses the others: no request is read, so that there is no status to answer with."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    refused = {
        "none": http_context(variables, shows=False),
        "expired": http_context(issue(authority, tmp_path / "old", "localhost", not_after=yesterday)),
        "another authority's": http_context(
            issue(trustme.CA(), tmp_path / "others", "localhost") | {CA_VARIABLE: variables[CA_VARIABLE]}
        ),
    }
    async with secured_service() as service:
        assert (await post(service.http, "/v1/score", BODY, tls=http_context(variables)))[0] == 200
        for whose, context in refused.items():
            # How it looks to the client depends on whether it still writes when the server closes.
            with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
                print(whose, await post(service.http, "/v1/score", BODY, tls=context))
        with pytest.raises(aiohttp.ClientError):
            await post(service.http, "/v1/score", BODY)


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


@pytest.mark.parametrize("max_connection_age_seconds", [0, 1])
async def test_renewed_certificates_of_both_sides_are_taken_up_while_calls_run_and_none_fails(
    authority, tmp_path, variables, max_connection_age_seconds
):
    """A new authority's: first both sides trust both, then show the new one's certificate, then trust it alone.

    Where connections are renewed every second, a client that still showed the old certificate would be refused.
    """
    new, tls = trustme.CA(), tmp_path / "tls"
    both = authority.cert_pem.bytes() + new.cert_pem.bytes()
    async with (
        secured_service(max_connection_age_seconds=max_connection_age_seconds) as service,
        RewardClient(service.target) as client,
        aiohttp.ClientSession() as session,
    ):
        done, num_served = asyncio.Event(), 0

        async def call_on_and_on() -> None:
            nonlocal num_served
            while not done.is_set():
                await client.score([ITEM])
                num_served += 1

        callers = [asyncio.create_task(call_on_and_on()) for _ in range(4)]
        url = f"https://{service.http}/v1/model"
        kept = http_context(variables)
        async with session.get(url, ssl=kept) as answer:
            assert (answer.status, len(await answer.read()) > 0) == (200, True)
        (tls / "ca.crt").write_bytes(both)
        await asyncio.sleep(1.3)
        renewed = issue(new, tls, "localhost", "127.0.0.1")
        (tls / "ca.crt").write_bytes(both)
        await asyncio.sleep(1.3)
        (tls / "ca.crt").write_bytes(new.cert_pem.bytes())
        await asyncio.sleep(1.3)
        served_before = num_served
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*callers)
        assert num_served > served_before > 0
        # The HTTP connection from before is still good; on a new one both show the new authority's certificate.
        async with session.get(url, ssl=kept) as answer:
            assert (answer.status, len(await answer.read()) > 0) == (200, True)
        assert (await post(service.http, "/v1/score", BODY, tls=http_context(renewed)))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await post(service.http, "/v1/score", BODY, tls=kept)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_new_http_connection_is_shown_the_renewed_certificate_even_if_it_names_no_host(
    authority, tmp_path, variables, host
):
    """A client that calls an address sends no name with its handshake."""
    async with secured_service() as service:
        port, first = int(service.http.rpartition(":")[2]), (tmp_path / "tls/tls.crt").read_text()
        assert await asyncio.to_thread(shown_certificate, port, http_context(variables), host) == first
        issue(authority, tmp_path / "tls", "localhost", "127.0.0.1")
        await asyncio.sleep(1.1)
        second = await asyncio.to_thread(shown_certificate, port, http_context(variables), host)
        assert second == (tmp_path / "tls/tls.crt").read_text() != first


async def test_a_call_in_flight_ends_on_the_channel_it_began_on(authority, tmp_path, variables):
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(request):
        started.set()
        await finish.wait()
        return await score_one(request)

    async with Toy() as toy:
        await toy.server.wait_ready()
        toy.servicer.score = slow
        call = asyncio.create_task(toy.client.score([ITEM]))
        await started.wait()
        issue(authority, tmp_path / "tls", "localhost", "127.0.0.1")
        await asyncio.sleep(1.1)
        toy.servicer.score = score_one
        assert (await toy.client.score([ITEM])).results == [Reward("", 1.5)]
        assert not call.done()
        finish.set()
        assert (await call).results == [Reward("", 1.5)]


def shown_certificate(port: int, context: ssl.SSLContext, host: str = "localhost") -> str:
    """Returns the certificate, in PEM, that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")

"""What this machine can do at best with bytes: one stream over the loopback interface, and a copy in memory."""

import multiprocessing
import socket
import time

import torch

NUM_BYTES = 256 * 2**20
"""About what a push of the small model moves."""
CHUNK_BYTES = 2**20
REPETITIONS = 3


def tcp_bytes_per_second() -> list[float]:
    """Returns the rate of single-stream TCP over loopback, from one process's buffer into another's, several times."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = multiprocessing.get_context("spawn").Process(target=_send, args=(server.getsockname()[1],))
        sender.start()
        connection, _ = server.accept()
        with connection:
            buffer = memoryview(bytearray(NUM_BYTES))
            buffer[:] = bytes(NUM_BYTES)  # its pages are there already, as those of a service that runs
            rates = [_receive(connection, buffer) for _ in range(REPETITIONS + 1)]
        sender.join()
    return rates[1:]  # the first one warms up


def memcpy_bytes_per_second() -> list[float]:
    """Returns the rate of copying such a buffer within a process, by one thread, several times."""
    source, target = torch.ones(NUM_BYTES, dtype=torch.uint8), torch.zeros(NUM_BYTES, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        target.copy_(source)
        rates.append(NUM_BYTES / (time.perf_counter() - started))
    torch.set_num_threads(threads)
    return rates[1:]


def _send(port: int) -> None:
    data = memoryview(bytearray(NUM_BYTES))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(REPETITIONS + 1):
            connection.recv(1)
            for start in range(0, NUM_BYTES, CHUNK_BYTES):
                connection.sendall(data[start : start + CHUNK_BYTES])


def _receive(connection: socket.socket, buffer: memoryview) -> float:
    started = time.perf_counter()
    connection.sendall(b"x")
    received = 0
    while received < NUM_BYTES:
        received += connection.recv_into(buffer[received : received + CHUNK_BYTES])
    return NUM_BYTES / (time.perf_counter() - started)

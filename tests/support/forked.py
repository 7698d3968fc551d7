"""Commands as processes that start within a moment: they are forked from one that has imported all and started nothing.

Arguments, variables, output, signals and exit codes are as from a terminal. That a command starts from nothing too is
left to the tests of whole pipelines and of services under `rlhf`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

import pytest


def fork(target: Callable[..., object], *arguments: Any, output: Path, errors: Path | None = None) -> ForkServerProcess:
    """Starts a function in a process of its own.

    Args:
        output: file to which stdout is appended.
        errors: the same for stderr; None: as stdout.
    """
    forkserver.set_forkserver_preload(["tests.support.forked_imports"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 does not tell the process that is forked from where modules are found.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_call, args=(target, arguments, output, errors or output), daemon=True)
    process.start()
    return process


class Command:
    """`python -m MODULE ARGUMENTS`, with as much of Popen as tests need; as a context it waits at its end."""

    def __init__(
        self,
        module: str,
        *arguments: object,
        output: Path,
        errors: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it.

        Args:
            module: such as "rlhf_cli.main".
            output: file to which stdout is appended.
            errors: the same for stderr; None: as stdout.
            variables: of the environment, beside those of this process.
        """
        words, environment = list(map(str, arguments)), {**os.environ, **(variables or {})}
        self._process = fork(_run_module, module, words, environment, output=output, errors=errors)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal's number; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the forked command", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def finish(module: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Returns exit code and output of `python -m MODULE ARGUMENTS`. Args: variables: of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        code = Command(module, *arguments, output=output, errors=errors, variables=variables).wait()
        return subprocess.CompletedProcess([module], code, output.read_text(), errors.read_text())


def _call(target: Callable[..., object], arguments: tuple[Any, ...], output: Path, errors: Path) -> None:
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        with path.open("a") as file:
            os.dup2(file.fileno(), stream.fileno())
    target(*arguments)


def _run_module(module: str, words: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")

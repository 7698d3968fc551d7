"""What the fuzz targets share: seeds, and libFuzzer's flags from the command line."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import atheris
import structlog


def fuzz(
    target: Callable[[bytes], None], seeds: list[bytes], mutated: Callable[[bytes, int, int], bytes] | None = None
) -> None:
    """Runs the target on inputs that libFuzzer makes of the seeds; ends the process: 0, or not if the target raised.

    The command line is libFuzzer's; a bound such as -runs=N or -max_total_time=SECONDS makes it end.

    Args: mutated: a change of an input, of at most so many bytes, by a seed; None leaves changes to libFuzzer.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder = Path(mkdtemp(prefix="seeds-"))
    for index, seed in enumerate(seeds):
        (folder / str(index)).write_bytes(seed)
    # libFuzzer writes what it finds into the first folder, and reads the others.
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    found = [] if given else [mkdtemp(prefix="found-")]
    atheris.Setup([*sys.argv, *found, str(folder)], target, custom_mutator=mutated)
    atheris.Fuzz()

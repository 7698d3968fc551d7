"""How a rank ends."""

import os
import subprocess
import sys

from rlhf.process import end_rank

SCRIPT = """
import atexit
from rlhf.process import end_rank
atexit.register(print, "shutting down")
print("last words")
end_rank(3)
print("after the end")
"""


def ended(world_size: str) -> tuple[int, list[str]]:
    """Returns exit code and output of a process that ends as a rank."""
    environment = {**os.environ, "WORLD_SIZE": world_size}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_process_alone_goes_on_with_its_exit_code():
    assert end_rank(3) == 3
    assert ended("1") == (0, ["last words", "after the end", "shutting down"])


def test_one_of_several_ranks_ends_without_python_s_shutdown():
    assert ended("2") == (3, ["last words"])

"""How torch's threads behave: where processes share cores, and when one of several ranks ends."""

import os
import sys


def sleep_at_barriers() -> None:
    """Makes the OpenMP threads of this process and its children sleep, not spin, while they wait for one another.

    A thread that spins starves whoever else has work for its core, the other half of its own team included: with the
    services on the same 2 cores, sampling and forward passes are several times faster like this. What the user has set
    in OMP_WAIT_POLICY stays. To be called before torch is imported, which reads it once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def end_rank(exit_code: int) -> int:
    """Returns the exit code where a process works alone; as one of several ranks it ends here, with that code.

    A thread of gloo may still hold a tensor of the last collective. Letting go of it while Python shuts down aborts the
    process (std::terminate), and a rank that has done its work would look as if it had failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code

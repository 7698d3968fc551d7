"""How torch's threads behave where processes share cores."""

import os


def sleep_at_barriers() -> None:
    """Makes the OpenMP threads of this process and its children sleep, not spin, while they wait for one another.

    A thread that spins starves whoever else has work for its core, the other half of its own team included: with the
    services on the same 2 cores, sampling and forward passes are several times faster like this. What the user has set
    in OMP_WAIT_POLICY stays. To be called before torch is imported, which reads it once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

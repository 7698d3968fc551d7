"""The trainer with updates that take as long as told: bench/sampling_ahead_trainer.py SECONDS ALGORITHM FLAGS...

It sleeps for what is left once the tiny model has learned, so that the machine is free for the services meanwhile.
"""

import sys
import time
from functools import wraps

from rlhf.learning.batch import Batch
from rlhf.learning.update import Update, Updater
from services.trainer.server import main


def last_for(seconds: float) -> None:
    """Makes every update of this process last so long."""
    update = Updater.update

    @wraps(update)
    def lasting(self: Updater, batch: Batch, step: int) -> Update:
        ends_at = time.monotonic() + seconds
        result = update(self, batch, step)
        time.sleep(max(0.0, ends_at - time.monotonic()))
        return result

    Updater.update = lasting  # type: ignore[method-assign]


if __name__ == "__main__":
    last_for(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

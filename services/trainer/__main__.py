"""`python -m services.trainer` is `rlhf-trainer`."""

import sys

from services.trainer.server import main

if __name__ == "__main__":
    sys.exit(main())

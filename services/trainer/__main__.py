"""`python -m rlhf_services.trainer` is `rlhf-trainer`."""

import sys

from rlhf_services.trainer.server import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m services.policy` is `rlhf-policy`."""

import sys

from services.policy.server import main

if __name__ == "__main__":  # vLLM's processes import this module anew
    sys.exit(main())

"""python -m rlhf_services.reward"""

import sys

from rlhf_services.reward.server import main

sys.exit(main())

"""python -m services.reward"""

import sys

from services.reward.server import main

sys.exit(main())

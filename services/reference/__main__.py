"""python -m rlhf_services.reference"""

import sys

from rlhf_services.reference.server import main

sys.exit(main())

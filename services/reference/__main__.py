"""python -m services.reference"""

import sys

from services.reference.server import main

sys.exit(main())

"""The scripts of deploy/monitoring import one another by their bare names, as when they are run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "deploy" / "monitoring"))

"""Writes dashboards/*.json from boards/*.py: make dashboards. Needs the [deploy] extra."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.boards import fleet, gpu, policy, resources, reward, run, services

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = {
    module.__name__.rpartition(".")[2]: module for module in (run, services, policy, fleet, reward, resources, gpu)
}


def encode(board: Dashboard) -> str:
    """Returns the JSON of a dashboard, in the same order every time."""
    return json.dumps(json.loads(JSONEncoder().encode(board)), indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Writes all dashboards."""
    for name, module in BOARDS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(encode(module.build()))
        print(path)


if __name__ == "__main__":
    main()

"""The program that writes dashboards/*.json from their descriptions; a test fails while they differ.

Run it as `python -m deploy.grafana.write`.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.gpu_dashboard import GPUS
from deploy.grafana.panels import Dashboard
from deploy.grafana.sampling_dashboard import SAMPLING
from deploy.grafana.service_dashboard import SERVICE
from deploy.grafana.training_dashboard import TRAINING

FOLDER = Path(__file__).with_name("dashboards")
DASHBOARDS = (SERVICE, TRAINING, SAMPLING, GPUS)


def rendered(dashboard: Dashboard) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(dashboard.json(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        (FOLDER / f"{one.name}.json").write_text(rendered(one))

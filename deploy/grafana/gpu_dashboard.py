"""The dashboard of GPUs, from the drivers of the workers' machines: one row for each GPU."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Row, Variable, panel

_GPU = 'uuid=~"$gpu"'
_ONE = "max by (uuid, gpu, name)"  # workers of one machine all show its GPUs

GPUS = Dashboard(
    name="gpus",
    title="GPUs",
    text="What the drivers of the workers' machines say. Empty where there is no GPU.",
    variables=(Variable("gpu", "GPU", "recovery_gpu_memory_total_bytes", "uuid"),),
    rows=(
        Row(
            title="$gpu",
            repeat="gpu",
            panels=(
                panel(
                    "Utilization",
                    (f"{_ONE} (recovery_gpu_utilization_ratio{{{_GPU}}})", "{{name}} {{gpu}}"),
                    unit="percentunit",
                    largest=1,
                    width=12,
                    text="Share of time in which any kernel ran. Not told by slices of a GPU (MIG).",
                ),
                panel(
                    "Memory",
                    (f"{_ONE} (recovery_gpu_memory_used_bytes{{{_GPU}}})", "{{name}} {{gpu}} used"),
                    (f"{_ONE} (recovery_gpu_memory_total_bytes{{{_GPU}}})", "{{name}} {{gpu}} there is"),
                    unit="bytes",
                    width=12,
                ),
            ),
        ),
    ),
)

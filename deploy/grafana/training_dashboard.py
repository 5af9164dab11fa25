"""The dashboard of jobs while they run. The series of a job end with it."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Row, Variable, panel
from deploy.grafana.service_dashboard import OUTCOMES

_JOB = 'job_id=~"$job_id"'


def _of_job(title: str, metric: str, unit: str = "short", text: str = "", *, log_scale: bool = False) -> Panel:
    expr = f"max by (job_id) ({metric}{{{_JOB}}})"
    return panel(title, (expr, "{{job_id}}"), unit=unit, text=text, log_scale=log_scale)


def _of_levels(title: str, metric: str, unit: str, text: str, *, width: int = 8, largest: float | None = None) -> Panel:
    expr = f"max by (job_id, level) ({metric}{{{_JOB}}})"
    return panel(title, (expr, "{{job_id}} level {{level}}"), unit=unit, text=text, width=width, largest=largest)


TRAINING = Dashboard(
    name="training",
    title="Training",
    text="Jobs while they run. Series of a job end with it.",
    variables=(Variable("job_id", "Job", "recovery_job_info", "job_id"),),
    rows=(
        Row(
            title="Jobs",
            panels=(
                panel("Running now", (f"recovery_job_info{{{_JOB}}}", ""), kind="table", width=24, height=5),
                panel(
                    "Done",
                    (
                        f"max by (job_id) (recovery_job_step{{{_JOB}}} / recovery_job_total_steps{{{_JOB}}})",
                        "{{job_id}}",
                    ),
                    unit="percentunit",
                    largest=1,
                ),
                _of_job("Steps per second", "recovery_job_steps_per_second"),
                panel(
                    "Time left",
                    (
                        f"max by (job_id) ((recovery_job_total_steps{{{_JOB}}} - recovery_job_step{{{_JOB}}}) "
                        f"/ recovery_job_steps_per_second{{{_JOB}}})",
                        "{{job_id}}",
                    ),
                    unit="s",
                ),
            ),
        ),
        Row(
            title="Optimisation",
            panels=(
                _of_job(
                    "Loss",
                    "recovery_job_loss",
                    text="In recovery likelihood a difference of energies around 0: it says little of quality.",
                ),
                _of_job("Gradient norm", "recovery_job_gradient_norm", text="Before clipping.", log_scale=True),
                _of_job("Learning rate", "recovery_job_learning_rate"),
            ),
        ),
        Row(
            title="Levels",
            panels=(
                _of_levels(
                    "Energy of the data",
                    "recovery_job_positive_energy_nats",
                    "nats",
                    "E(y+). Level 0 is the cleanest. No curves during score matching, which has no chains.",
                ),
                _of_levels(
                    "Energy of the chains' ends",
                    "recovery_job_negative_energy_nats",
                    "nats",
                    "E(y−).",
                ),
                _of_levels(
                    "Gap: chains minus data",
                    "recovery:job_energy_gap_nats",
                    "nats",
                    "Near 0 when the chains end where the data are. Falling without end is divergence on its way.",
                ),
                _of_levels(
                    "Chain displacement",
                    "recovery_job_chain_displacement",
                    "short",
                    "Root mean square per coordinate, data units. 0 means chains that do not move.",
                    width=12,
                ),
                _of_levels(
                    "Acceptance rate",
                    "recovery_job_acceptance_ratio",
                    "percentunit",
                    "Of the chains' proposals; 1 for kernels without a Metropolis step.",
                    width=12,
                    largest=1,
                ),
            ),
        ),
        Row(
            title="Checkpoints and setbacks",
            panels=(
                panel(
                    "Cost of the last checkpoint",
                    (f"max by (job_id) (recovery_job_checkpoint_write_seconds{{{_JOB}}})", "{{job_id}} to disk"),
                    (f"max by (job_id) (recovery_job_checkpoint_upload_seconds{{{_JOB}}})", "{{job_id}} to storage"),
                    unit="s",
                    text="The training waits for neither.",
                ),
                _of_job("Size of a checkpoint", "recovery_job_checkpoint_size_bytes", "bytes"),
                _of_job(
                    "What a crash would cost now",
                    "recovery:job_unsaved_seconds",
                    "s",
                    "Time since the last checkpoint, or since the attempt began.",
                ),
                _of_job("Checkpoints committed", "recovery_job_checkpoints_total"),
                _of_job("Divergences gone back from", "recovery_job_rollbacks_total"),
                OUTCOMES,
            ),
        ),
    ),
)

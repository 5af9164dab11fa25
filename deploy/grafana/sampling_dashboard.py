"""The dashboard of the samplers' engines: how full and how fast they are, and what requests wait for."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Row, Variable, panel

_SAMPLER = 'instance=~"$instance"'
_PART = "recovery_sampler_request_part_seconds"
_SAMPLES = f'kind="sample", {_SAMPLER}'


def _rate(metric: str, selector: str = _SAMPLER) -> str:
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def _mean(metric: str, selector: str) -> str:
    return f"sum({_rate(metric + '_sum', selector)}) / (sum({_rate(metric + '_count', selector)}) > 0)"


def _increase(metric: str) -> str:
    return f"sum(increase({metric}{{{_SAMPLER}}}[$__rate_interval]))"


def _of_engine(title: str, expr: str, unit: str = "short", text: str = "", largest: float | None = None) -> Panel:
    return panel(title, (expr, "{{instance}}"), unit=unit, text=text, largest=largest)


SAMPLING = Dashboard(
    name="sampling",
    title="Sampling",
    text="The engines of the samplers: how full, how fast, and what requests wait for.",
    variables=(Variable("instance", "Sampler", "recovery_engine_chains", "instance"),),
    rows=(
        Row(
            title="Engine",
            panels=(
                panel(
                    "Chains",
                    (f"sum by (state) (recovery_engine_chains{{{_SAMPLER}}})", "{{state}}"),
                    stacked=True,
                    text="Those that wait do so for a row of the batch.",
                ),
                _of_engine(
                    "Backlog",
                    f"recovery_engine_backlog_seconds{{{_SAMPLER}}}",
                    "s",
                    "Time to do all that was accepted.",
                ),
                _of_engine(
                    "How full batches are",
                    f"{_rate('recovery_engine_gradient_evaluations_total')} "
                    f"/ ({_rate('recovery_engine_row_capacity_total')} > 0)",
                    "percentunit",
                    largest=1,
                ),
                _of_engine(
                    "Gradient evaluations per second",
                    _rate("recovery_engine_gradient_evaluations_total"),
                    text="Of single chains: batches times the rows in them.",
                ),
                _of_engine("Batches per second", _rate("recovery_engine_evaluations_total")),
                _of_engine(
                    "Engine at work",
                    _rate("recovery_engine_busy_seconds_total"),
                    "percentunit",
                    "Share of the time; near 1 it is the bottleneck.",
                    largest=1,
                ),
            ),
        ),
        Row(
            title="Requests",
            panels=(
                _of_engine("Images per second", _rate("recovery_sampler_images_total")),
                panel(
                    "Requests by outcome",
                    (f"sum by (kind, outcome) ({_rate('recovery_sampler_requests_total')})", "{{kind}} {{outcome}}"),
                    unit="reqps",
                    stacked=True,
                ),
                panel(
                    "Where a request's time goes, mean",
                    *((_mean(_PART, f'part="{part}", {_SAMPLES}'), part) for part in ("queue", "load", "compute")),
                    (_mean("recovery_encode_duration_seconds", 'route="/sample"'), "encode"),
                    unit="s",
                    stacked=True,
                ),
                panel(
                    "Parts of a request's time, 95th percentile",
                    (
                        f"histogram_quantile(0.95, sum by (part, le) ({_rate(_PART + '_bucket', _SAMPLES)}))",
                        "{{part}}",
                    ),
                    unit="s",
                ),
                panel(
                    "Messages not taken, and the oldest of them",
                    ('max(recovery_queue_length{queue="sample"})', "messages"),
                    ('recovery:queue_oldest_age_seconds:max{queue="sample"}', "age in seconds"),
                ),
                _of_engine(
                    "Events scored per second", _rate("recovery_sampler_scored_events_total"), text="POST /log-density."
                ),
            ),
        ),
        Row(
            title="Models",
            panels=(
                _of_engine("Models in memory", f"recovery_engine_models{{{_SAMPLER}}}"),
                _of_engine("Their weights", f"recovery_engine_model_bytes{{{_SAMPLER}}}", "bytes"),
                panel(
                    "Found in memory, loaded, dropped",
                    (_increase("recovery_engine_model_hits_total"), "found"),
                    (_increase("recovery_engine_model_loads_total"), "loaded"),
                    (_increase("recovery_engine_model_evictions_total"), "dropped"),
                ),
                panel(
                    "Time to load a model, mean",
                    (
                        f"{_increase('recovery_engine_model_load_seconds_total')} "
                        f"/ ({_increase('recovery_engine_model_loads_total')} > 0)",
                        "mean",
                    ),
                    unit="s",
                ),
            ),
        ),
    ),
)

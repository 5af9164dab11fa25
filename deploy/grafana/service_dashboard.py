"""The dashboard of the service: whether it is up, who asks for what, and how long everything waits."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Row, Variable, panel

_ROUTE = 'route=~"$route", route!~"/healthz|/readyz|/metrics"'
_REQUESTS = f"rate(recovery_http_requests_total{{{_ROUTE}}}[$__rate_interval])"
_ERRORS = f'rate(recovery_http_requests_total{{{_ROUTE}, status=~"5.."}}[$__rate_interval])'
_BUCKETS = f"rate(recovery_http_request_duration_seconds_bucket{{{_ROUTE}}}[$__rate_interval])"
_SAMPLE = 'sum by (le) (rate(recovery_http_request_duration_seconds_bucket{route="/sample"}[$__rate_interval]))'
_ITS_COMPONENT = "* on (instance, job) group_left (component) recovery_build_info"
_UP = {0: "away", 1: "up"}


def _number(title: str, expr: str, unit: str = "short", words: dict[int, str] | None = None) -> Panel:
    return panel(title, (expr, ""), unit=unit, kind="stat", width=3, height=4, words=words or {})


# All replicas read these series from the same Redis, so they are taken once (max), whichever `instance` has them.
OUTCOMES = panel(
    "Attempts that ended in the last hour",
    (
        "sum by (kind, outcome) (max without (instance, job) "
        "(increase(recovery_job_attempt_duration_seconds_count[1h]))) > 0",
        "{{kind}} {{outcome}}",
    ),
    text="lease_lost: the worker died with everything. lost: the job's process was killed, or a store stayed away. "
    "interrupted: the worker was shut down in order, which does not count against a job.",
)

SERVICE = Dashboard(
    name="service",
    title="Service",
    text="Is it up, who asks for what, and how long does everything wait?",
    variables=(Variable("route", "Route", "recovery_http_requests_total", "route"),),
    rows=(
        Row(
            title="Now",
            panels=(
                _number("Requests", f"sum({_REQUESTS})", "reqps"),
                _number("Failing (status 5xx)", "recovery:http_errors:ratio5m", "percentunit"),
                _number("Jobs running", 'sum(recovery:jobs:current{status="running"})'),
                _number("Jobs waiting", 'sum(recovery:jobs:current{status="queued"})'),
                _number("Trainers", 'recovery:workers:alive{kind="train"}'),
                _number("Samplers", 'recovery:workers:alive{kind="sample"}'),
                _number("Redis", "min(recovery_redis_up)", words=_UP),
                _number("Storage", "min(recovery_s3_up)", words=_UP),
            ),
        ),
        Row(
            title="Requests",
            panels=(
                panel("Rate by route", (f"sum by (route) ({_REQUESTS})", "{{route}}"), unit="reqps"),
                panel("Rate by status", (f"sum by (status) ({_REQUESTS})", "{{status}}"), unit="reqps", stacked=True),
                panel("Errors by route", (f"sum by (route, status) ({_ERRORS})", "{{route}} {{status}}"), unit="reqps"),
                panel(
                    "Duration, 95th percentile by route",
                    (f"histogram_quantile(0.95, sum by (route, le) ({_BUCKETS}))", "{{route}}"),
                    unit="s",
                    log_scale=True,
                    text="Event streams and waits (`Prefer: wait`) last as long as their job.",
                ),
                panel(
                    "Duration of POST /sample",
                    *((f"histogram_quantile({q}, {_SAMPLE})", f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)),
                    unit="s",
                ),
                panel(
                    "Requests in progress",
                    ("sum by (instance) (recovery_http_requests_in_progress)", "{{instance}}"),
                ),
            ),
        ),
        Row(
            title="Jobs and queues",
            panels=(
                panel(
                    "Jobs that wait and run",
                    ('recovery:jobs:current{status=~"queued|running"}', "{{kind}} {{status}}"),
                ),
                panel(
                    "Messages in the queues",
                    ("max by (queue) (recovery_queue_length)", "{{queue}}"),
                    text="A sampler's requests wait here only while none of its threads is free.",
                ),
                panel("Longest wait", ("recovery:queue_oldest_age_seconds:max", "{{queue}}"), unit="s"),
                panel("Workers alive", ("recovery:workers:alive", "{{kind}}")),
                OUTCOMES,
                panel(
                    "Duration of jobs that succeeded, median of 6 hours",
                    (
                        "histogram_quantile(0.5, max by (kind, le) "
                        '(increase(recovery_job_duration_seconds_bucket{status="succeeded"}[6h])))',
                        "{{kind}}",
                    ),
                    unit="s",
                    text="From when a job was given, or resumed, to its end: waiting counts.",
                ),
            ),
        ),
        Row(
            title="Processes",
            panels=(
                panel(
                    "Memory",
                    (f"process_resident_memory_bytes {_ITS_COMPONENT}", "{{component}} {{instance}}"),
                    unit="bytes",
                    text="Of main processes; a training's own is in its subprocess.",
                ),
                panel(
                    "Cores in use",
                    (
                        f"rate(process_cpu_seconds_total[$__rate_interval]) {_ITS_COMPONENT}",
                        "{{component}} {{instance}}",
                    ),
                ),
                panel("What runs", ("count by (component, version, python) (recovery_build_info)", ""), kind="table"),
            ),
        ),
    ),
)

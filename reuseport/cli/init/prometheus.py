"""Alerts and recording rules for Prometheus (prometheus.io/docs/prometheus/latest/configuration/alerting_rules)."""

from __future__ import annotations

from dataclasses import dataclass

from reuseport.cli.init.described import Described, quoted
from reuseport.options import parse_address

ASSUMED = "127.0.0.1:9100"  # where the metrics are, if --metrics does not say so
LONG_DRAIN = 4 * 3600  # seconds, where no --job-timeout says how long jobs take
OF = "job, instance, generation"


@dataclass(frozen=True)
class Alert:
    """`{JOB}` in `expression` stands for the label of the job; `lasting`: for how long it must be true."""

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str
    description: str


RECORDED = {
    "reuseport:errors:ratio_rate5m": f"sum by ({OF}) (rate(reuseport_errors_total{{JOB}}[5m])) "
    f"/ (sum by ({OF}) (rate(reuseport_requests_total{{JOB}}[5m])) > 0)",
    "reuseport:request_duration_seconds:p99_rate5m": f"histogram_quantile(0.99, sum by ({OF}, le) "
    "(rate(reuseport_request_duration_seconds_bucket{JOB}[5m])))",
}

ALERTS = (
    Alert(
        "ReuseportUnreachable", "up{JOB} == 0", "1m", "critical",
        "The master of {{ $labels.job }} cannot be scraped.",
        "Workers serve on without a master, but nothing replaces them. `systemctl status`, or `reuseport status`.",
    ),
    Alert(
        "ReuseportServesNothing", "reuseport_up{JOB} == 0", "1m", "critical",
        "No version of {{ $labels.job }} serves.",
        "The first release failed or still boots. `reuseport status` and the log say which.",
    ),
    Alert(
        "ReuseportErrors",
        "reuseport:errors:ratio_rate5m{JOB} > 0.05 "
        f"and sum by ({OF}) (rate(reuseport_requests_total{{JOB}}[5m])) > 0.1", "2m", "critical",
        "{{ $value | humanizePercentage }} of the answers of generation {{ $labels.generation }} are errors.",
        "If the generation is new, `reuseport rollback` goes back to the version before it.",
    ),
    Alert(
        "ReuseportReleaseFailed", 'increase(reuseport_releases_total{JOB,outcome=~"failed|taken_back"}[15m]) > 0', "0m",
        "warning",
        "A release of {{ $labels.job }} has failed ({{ $labels.outcome }}).",
        "The version before it serves on. `reuseport history` has the reason.",
    ),
    Alert(
        "ReuseportReleaseTakesLong", "reuseport_release_in_progress{JOB} == 1", "{BOOT}", "warning",
        "A release of {{ $labels.job }} takes longer than --boot-timeout.",
        "`reuseport status` has the stage; `reuseport abort` ends the release.",
    ),
    Alert(
        "ReuseportWorkersMissing",
        f"reuseport_workers_wanted{{JOB}} - (sum by ({OF}) (reuseport_workers{{JOB,state=\"serving\"}}) "
        "or reuseport_workers_wanted{JOB} * 0) > 0", "3m", "warning",
        "Generation {{ $labels.generation }} lacks {{ $value }} workers.",
        "They do not start, or are blocked. `reuseport status` and the log say why.",
    ),
    Alert(
        "ReuseportWorkersBlocked", 'reuseport_workers{JOB,state="blocked"} > 0', "1m", "warning",
        "{{ $value }} workers of generation {{ $labels.generation }} are blocked.",
        "A call keeps their loops from turning. `reuseport stacks` shows which.",
    ),
    Alert(
        "ReuseportWorkersCrash", 'increase(reuseport_worker_restarts_total{JOB,reason="crashed"}[10m]) > 2', "0m",
        "warning",
        "Workers of {{ $labels.job }} crash.",
        "The log names the signal or exit status of each, and the requests that it had.",
    ),
    Alert(
        "ReuseportQuarantine", "reuseport_quarantine_entries{JOB} > 0", "0m", "warning",
        "{{ $value }} requests of generation {{ $labels.generation }} are in quarantine.",
        "Workers died while they answered these requests. `reuseport quarantine` names them.",
    ),
    Alert(
        "ReuseportJobsLost", 'increase(reuseport_jobs_ended_total{JOB,outcome="lost"}[15m]) > 0', "0m", "warning",
        "Jobs of {{ $labels.job }} were lost with their process.",
        "The log and `reuseport history` name them.",
    ),
    Alert(
        "ReuseportJobsOverdue", 'reuseport_jobs{JOB,state="overdue"} > 0', "5m", "warning",
        "{{ $value }} jobs of generation {{ $labels.generation }} run beyond their deadline.",
        "`reuseport status` names them.",
    ),
    Alert(
        "ReuseportDrainTakesLong", "reuseport_drain_age_seconds{JOB} > {DRAIN}", "0m", "info",
        "Generation {{ $labels.generation }} has drained for {{ $value | humanizeDuration }}.",
        "`reuseport status` says for which requests, jobs and companions it waits.",
    ),
    Alert(
        "ReuseportQueueFull", "reuseport_slot_queue_length{JOB} / (reuseport_slot_queue_limit{JOB} > 0) > 0.8", "1m",
        "warning",
        "The accept queue of {{ $labels.address }} is nearly full.",
        "Clients are refused soon. The workers are blocked or too few, or --backlog is small.",
    ),
    Alert(
        "ReuseportThreadsBusy", "reuseport_requests_waiting{JOB} > 0", "5m", "warning",
        "{{ $value }} requests of generation {{ $labels.generation }} wait for a thread.",
        "More --threads or --workers, or shorter requests.",
    ),
    Alert(
        "ReuseportCompanionsFail", "reuseport_companions_failing{JOB} > 0", "2m", "warning",
        "Companion {{ $labels.companion }} of generation {{ $labels.generation }} fails.",
        "`reuseport status` and the log say why.",
    ),
)  # fmt: skip


def text(app: Described) -> str:
    address, remark = metrics_address(app)
    drain = int(app.settings.job_timeout + app.settings.job_grace) if app.settings.job_timeout else LONG_DRAIN
    # The rest of a boot, and the probation, come behind --boot-timeout.
    boot = int(app.settings.boot_timeout + app.settings.probation) + 60
    marks = {"{DRAIN}": str(drain), "{BOOT}": f"{boot}s"}
    lines = [
        f"# Alerts for {app.name}: /etc/prometheus/rules/{app.name}.yml. `promtool check rules` checks the file.",
        "# In prometheus.yml:",
        "#",
        f"#     rule_files: [rules/{app.name}.yml]",
        "#     scrape_configs:",
        f"#       - job_name: {quoted(app.name)}",
        "#         static_configs:",
        f"#           - targets: [{quoted(address)}]",
        *(["#", f"# {remark}"] if remark else []),
        "groups:",
        f"  - name: {quoted(f'reuseport {app.name}')}",
        "    rules:",
    ]
    for name, expression in RECORDED.items():
        lines += [f"      - record: {name}", f"        expr: {quoted(of_job(expression, app.name))}"]
    for one in ALERTS:
        expression, lasting = of_job(one.expression, app.name), one.lasting
        for mark, value in marks.items():
            expression, lasting = expression.replace(mark, value), lasting.replace(mark, value)
        lines += [
            f"      - alert: {one.name}",
            f"        expr: {quoted(expression)}",
            f"        for: {lasting}",
            f"        labels: {{severity: {one.severity}}}",
            "        annotations:",
            f"          summary: {quoted(one.summary)}",
            f"          description: {quoted(one.description)}",
        ]
    return "\n".join(lines) + "\n"


def metrics_address(app: Described) -> tuple[str, str]:
    """HOST:PORT at which Prometheus finds the metrics, and what must be done for it, or "". It reads no unix socket."""
    said = parse_address(app.settings.metrics) if app.settings.metrics else None
    if said is None or said.path or not said.port:
        return ASSUMED, f"The server needs --metrics {ASSUMED}."
    if said.host in ("0.0.0.0", "::", ""):
        return f"localhost:{said.port}", "Prometheus on another machine needs the name of this one instead."
    return str(said).removeprefix("tcp:"), ""


def of_job(expression: str, job: str) -> str:
    """With the label of the job in each selector."""
    label = f"job={quoted(job)}"
    return expression.replace("{JOB,", f"{{{label},").replace("{JOB}", f"{{{label}}}")

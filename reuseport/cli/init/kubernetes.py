"""A Deployment and a Service of the image that `init docker` prints.

Three times must agree: the server still accepts (--stop-delay) until nobody sends to it any more; then it finishes
what it has; and only after that the kubelet kills.
"""

from __future__ import annotations

import re

from reuseport.cli.init.container import account, address, remark
from reuseport.cli.init.described import Described, quoted, sequence
from reuseport.cli.init.docker import RUN, command, run_dir
from reuseport.options import OptionError

HEALTH = "/healthz"
DELAY = 10  # seconds: until every node's proxy has heard that a pod leaves
PERIOD = 5  # seconds between two readiness probes
RESOURCES = """
          # Without --workers there are as many as may run at once by this; without a limit, as the node has cores.
          resources:
            limits:
              cpu: "2"
"""


def text(app: Described) -> str:
    settings = app.settings
    name = _label(app.name)
    outside, who = address(app), account(app)
    if outside is None:
        raise OptionError(f"init: {settings.where('bind')}: a Service needs a TCP port, not a unix socket")
    reason = remark(app).replace("# ", " " * 10 + "# ").replace("`ports:` or `docker run -p`", "the Service")
    health = settings.health_path or HEALTH
    more = [] if app.says("health_path") else ["--health-path", health]
    more += [] if app.says("stop_delay") else ["--stop-delay", str(DELAY)]
    grace, why = app.grace()
    if not app.says("stop_delay") and grace:
        grace += DELAY
    scheme = "HTTPS" if settings.certfile else "HTTP"
    environment = {"REUSEPORT_RUN_DIR": run_dir(app), **dict(app.variables())}
    variables = "\n".join(
        f"            - name: {variable}\n              value: {quoted(_plain(value))}"
        for variable, value in environment.items()
    )
    return f"""\
# A release is a new image: kubectl set image, or apply. Pods of the old version finish their requests and jobs beside
# those of the new one, for as long as terminationGracePeriodSeconds lets them.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: 2
  strategy:
    # A pod leaves when its successor is ready, and not before.
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      app: {name}
  template:
    metadata:
      labels:
        app: {name}
    spec:
      # How long a stop may take until it becomes a kill, which a job does not survive.
      # This is {why}.
      terminationGracePeriodSeconds: {grace}
      containers:
        - name: {name}
          image: {name}:latest
{reason}          command: {sequence(map(_plain, command(app, *more)))}
          env:
{variables}
          ports:
            - name: http
              containerPort: {outside.port}

          # Answered by a worker, so it also shows that requests get through. It is 503 from the moment of the TERM,
          # while the server still accepts for --stop-delay: that a pod leaves is not known everywhere at once. So there
          # is no `preStop` that sleeps. A tcpSocket would be open before the application is loaded.
          readinessProbe:
            httpGet:
              path: {quoted(health)}
              port: http
              scheme: {scheme}
            periodSeconds: {PERIOD}
            timeoutSeconds: 3
            failureThreshold: 2

          # The master answers, also while the application still loads (so there is no startupProbe), and while a stop
          # waits for jobs. Workers are not asked: the master replaces those that are blocked or dead, and a restart of
          # the pod would take all the others along.
          livenessProbe:
            exec:
              command: ["reuseport", "status", "--json"]
            periodSeconds: 30
            timeoutSeconds: 10
            failureThreshold: 4
{"" if app.says("workers") else RESOURCES}
          securityContext:
            runAsNonRoot: true
            runAsUser: {who.uid}
            runAsGroup: {who.gid}
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities:
              drop: [ALL]
          volumeMounts:
            - name: run
              mountPath: {RUN}
            - name: tmp
              mountPath: /tmp
      volumes:
        # Sockets and counters that the pod's processes share.
        - name: run
          emptyDir:
            medium: Memory
        - name: tmp
          emptyDir: {{}}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector:
    app: {name}
  ports:
    - name: http
      port: {443 if settings.certfile else 80}
      targetPort: http
"""


def _plain(word: str) -> str:
    """Without $(NAME), in whose place the kubelet would put a variable."""
    return word.replace("$(", "$$(")


def _label(name: str) -> str:
    """The name as RFC 1123 wants labels: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")[:63].rstrip("-") or "app"

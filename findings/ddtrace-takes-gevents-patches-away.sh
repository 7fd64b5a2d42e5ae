#!/bin/sh
# ddtrace 4.16.0 with gevent 26.9.0: `import ddtrace.auto` behind monkey.patch_all() takes patches away from what is
# imported after it.
#
# A good guess: an import does not change modules that are patched already. ddtrace does warn that this order "is likely
# to break the application".
# What happens: ddtrace removes time and threading from sys.modules, so the next `import time` makes an unpatched one.
# Exit status: 0 while this is so.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check ddtrace==4.16.0 gevent==26.9.0
export DD_TRACE_ENABLED=false DD_INSTRUMENTATION_TELEMETRY_ENABLED=false DD_REMOTE_CONFIGURATION_ENABLED=false
export DD_CRASHTRACKING_ENABLED=false DD_TRACE_AGENT_URL=http://127.0.0.1:9
"$home/venv/bin/python" - <<'PYTHON'
from gevent import monkey
monkey.patch_all()
import time
before = time.sleep.__module__
import ddtrace.auto
import os, time
print("time.sleep comes from", before, "before, and from", time.sleep.__module__, "after the import", flush=True)
os._exit(0 if (before, time.sleep.__module__) == ("gevent.hub", "time") else 1)
PYTHON

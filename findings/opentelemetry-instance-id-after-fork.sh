#!/bin/sh
# opentelemetry-sdk 1.45.1: a fork replaces a service.instance.id that the application has set.
#
# A good guess: the SDK makes an id only where none was set, so a set one stays in the child.
# What happens: the child's provider and its spans have a random one.
# Exit status: 0 while this is so.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.1
"$home/venv/bin/python" - <<'PYTHON'
import os, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider(resource=Resource.create({"service.instance.id": "shop-1"}))
child = os.fork()
if not child:
    found = provider.get_tracer("shop").start_span("one").resource.attributes["service.instance.id"]
    print("set before the fork: shop-1; in a span of the child:", found, flush=True)
    os._exit(0 if found != "shop-1" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
PYTHON

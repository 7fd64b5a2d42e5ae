#!/bin/sh
# python-dotenv 1.2.4: ${NAME} is replaced in single quotes, too.
#
# A good guess: single quotes keep their text as it is, as in a shell, in systemd's EnvironmentFile= (systemd.exec(5)) and
# in an env_file of Docker Compose.
# What happens: dotenv_values() and load_dotenv() replace it, whatever the quotes. Only interpolate=False keeps it.
# Exit status: 0 while this is so.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check python-dotenv==1.2.4
"$home/venv/bin/python" - <<'PYTHON'
import io, sys
from dotenv import dotenv_values
line = "TEMPLATE='${USER_NAME} pays'\n"
usual, plain = (dotenv_values(stream=io.StringIO(line), interpolate=way)["TEMPLATE"] for way in (True, False))
print(f"{line.strip()} is {usual!r} by default, and {plain!r} with interpolate=False")
sys.exit(0 if (usual, plain) == (" pays", "${USER_NAME} pays") else 1)
PYTHON

#!/usr/bin/env bash
# Is the description of the API valid, and does the server do what it says? Schemathesis makes requests
# of it, good and bad ones, for half a minute, against the demo model. Its packages are installed into
# build/api-venv the first time, and again when requirements.txt or the Python changes.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=build/api-venv
log=build/api-venv.log
wanted="$(python3 --version) $(sha256sum <tests/api/requirements.txt)"

if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "api: installing schemathesis and openapi-spec-validator into $venv (about a minute)"
  mkdir -p build
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" &&
      "$venv/bin/python" -m pip install --disable-pip-version-check -r tests/api/requirements.txt
    } >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    echo "api: the Python packages could not be installed (above; all of it in $log)." >&2
    exit 1
  fi
  echo "$wanted" >"$venv/installed"
fi

# The server is on this machine: no proxy is between. Python leaves nothing in the source tree.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/api "$@"

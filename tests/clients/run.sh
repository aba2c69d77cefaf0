#!/usr/bin/env bash
# Runs the published Python clients against the real binary. They are installed into
# build/clients-venv the first time, and again when requirements.txt or the Python changes.
# Arguments go to pytest: `tests/clients/run.sh -k golden`, `--lorry build/debug/lorry`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=build/clients-venv
log=build/clients-venv.log
wanted="$(python3 --version) $(sha256sum <tests/clients/requirements.txt)"

if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "clients: installing lorax-client, openai and pytest into $venv (about a minute)"
  mkdir -p build
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" &&
      "$venv/bin/python" -m pip install --disable-pip-version-check -r tests/clients/requirements.txt
    } >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    echo "clients: the Python clients could not be installed (above; all of it in $log)." >&2
    echo "They need python3 with venv (Debian: python3-venv) and the Python package index." >&2
    exit 1
  fi
  echo "$wanted" >"$venv/installed"
fi

# The server is on this machine: no proxy is between. Python leaves nothing in the source tree.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -c tests/clients/pytest.ini tests/clients "$@"

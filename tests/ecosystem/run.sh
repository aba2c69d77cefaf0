#!/usr/bin/env bash
# Published tools that measure models, unmodified, against the real binary: lm-evaluation-harness and
# AIPerf. Arguments go to pytest. LORRY_LOAD_SECONDS: how long AIPerf keeps the server busy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv ecosystem
export PYTHONPATH=tests/clients  # lorry_server.py
exec build/ecosystem-venv/bin/python -m pytest -q -p no:cacheprovider -W ignore tests/ecosystem "$@"

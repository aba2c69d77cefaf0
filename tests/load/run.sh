#!/usr/bin/env bash
# The real binary under load, for about a minute: load.py, and a short soak.
# By hand, on a quiet machine: tests/load/run.sh --full; then tests/load/soak.py and overhead.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv clients
build/clients-venv/bin/python tests/load/load.py "$@"
build/clients-venv/bin/python tests/load/soak.py --minutes 0.5

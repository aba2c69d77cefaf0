#!/usr/bin/env bash
# Runs the published Python clients against the real binary. Arguments go to pytest:
# `tests/clients/run.sh -k golden`, `--lorry build/debug/lorry`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv clients
exec build/clients-venv/bin/python -m pytest -c tests/clients/pytest.ini tests/clients "$@"

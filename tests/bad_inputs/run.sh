#!/usr/bin/env bash
# Bad inputs and faults against the real binary, each test named after its row. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv clients
exec build/clients-venv/bin/python -m pytest -c tests/bad_inputs/pytest.ini tests/bad_inputs "$@"

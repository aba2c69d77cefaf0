#!/usr/bin/env bash
# Is the description of the API valid, and does the server do what it says? Schemathesis makes requests
# of it, good and bad ones, for half a minute, against the demo model. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv api
exec build/api-venv/bin/python -m pytest -q -p no:cacheprovider tests/api "$@"

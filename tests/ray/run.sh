#!/usr/bin/env bash
# The Ray Serve application of deploy/ray with two replicas of the demo model. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
make_venv ray
export PYTHONPATH=tests/clients  # prompts.py
exec build/ray-venv/bin/python -m pytest -q -p no:cacheprovider -W ignore tests/ray "$@"

#!/usr/bin/env bash
# The web page in a real browser (Debian's headless Chromium; half a minute), against the real binary. Arguments go
# to pytest; `tests/web/run.sh --screenshots DIR` makes the pictures of docs/images instead.
# Where Chromium cannot be installed this says so, and fails in CI only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/venv.sh
if ! command -v chromium-headless-shell >/dev/null && ! tools/setup.sh tests/web/packages.txt; then
  echo "web: SKIPPED, there is no Chromium (above): the packages of tests/web/packages.txt bring it." >&2
  [ -z "${CI:-}" ] || exit 1
  exit 0
fi
make_venv web
what=tests/web
if [ "${1:-}" = --screenshots ]; then what=tests/web/screenshots.py; fi
exec build/web-venv/bin/python -m pytest -c tests/web/pytest.ini "$what" "$@"

# Sourced by the run.sh of tests that need Python packages, from the root of the repository.
# make_venv NAME: build/NAME-venv with what tests/NAME/requirements.txt pins, made the first time and
# again when that file or the Python changes. Then environment for a server on this machine.
make_venv() {
  local name=$1 venv=build/$1-venv log=build/$1-venv.log wanted
  wanted="$(python3 --version) $(sha256sum <"tests/$name/requirements.txt")"
  if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "$name: installing the Python packages of tests/$name/requirements.in into $venv (about a minute)"
    mkdir -p build
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check -r "tests/$name/requirements.txt"
      } >"$log" 2>&1 </dev/null; then
      tail -n 15 "$log" >&2
      echo "$name: the Python packages could not be installed (above; all of it in $log)." >&2
      echo "They need python3 with venv (Debian: python3-venv) and the Python package index." >&2
      return 1
    fi
    echo "$wanted" >"$venv/installed"
  fi
  # No proxy is between. Python leaves nothing in the source tree.
  export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 PYTHONDONTWRITEBYTECODE=1
}

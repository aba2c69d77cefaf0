#!/usr/bin/env bash
# Installs what Lorry needs to build and to test, and nothing that is already there:
#   - the Debian packages of tools/packages.txt, and of further such lists that are named as arguments,
#   - a Rust tool chain of at least $rust_min, if there is none: from Debian where a package is new
#     enough (Debian 12: cargo-web), else by the official rustup installer into ~/.cargo.
# When nothing is missing it asks the network nothing and ends in a fraction of a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rust_min=1.87  # llguidance asks for it; the highest of ffi/Cargo.lock
log=build/setup.log
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

wanted_packages() { sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "${lists[@]}"; }

missing_packages() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' 2>/dev/null | awk '$1 == "ii" {print $2}')
  wanted_packages | grep -vxF -f <(printf '%s\n' "$installed") || true
}

at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }  # $1 <= $2

cargo_version() { { cargo --version 2>/dev/null || true; } | awk '{print $2}'; }  # empty: no cargo

have_rust() {
  local version
  version=$(cargo_version) && [ -n "$version" ] && at_least "$rust_min" "$version" &&
    command -v rustc >/dev/null
}

# Runs one apt-get command with its output in the log; what failed is shown.
apt() {
  if ! DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
      "$@" >>"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    return 1
  fi
}

candidate() { apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)" {print $2}'; }

# Which Debian package brings a new enough cargo; nothing when none does.
rust_package() {
  local name version
  for name in cargo cargo-web; do
    version=$(candidate "$name")
    version=${version#*:}
    # cargo's own numbers were 0.x before Debian gave it rustc's: 0.66 is not 1.66.
    if [ -n "$version" ] && at_least "$rust_min" "${version%%[+~-]*}"; then
      echo "$name"
      return
    fi
  done
}

# The part that needs root: "$1" is yes when a Rust tool chain is wanted, the others are packages.
install_as_root() {
  local want_rust=$1 rust package unknown=()
  shift
  say "reading the package lists"
  apt update || die "apt-get update failed (above): is the network there?"
  for package in "$@"; do
    [ -n "$(candidate "$package")" ] || unknown+=("$package")
  done
  [ ${#unknown[@]} -eq 0 ] || die "these packages are not in this system's sources: ${unknown[*]}" \
    "tools/packages.txt is written for Debian 12; elsewhere install their equivalents and edit that list."
  if [ "$want_rust" = yes ]; then
    rust=$(rust_package)
    [ -z "$rust" ] || set -- "$@" "$rust"
  fi
  [ $# -gt 0 ] || return 0
  say "downloading $# packages: $*"
  apt install --no-install-recommends --no-remove --download-only "$@" ||
    die "apt-get could not fetch the packages (above; all of it in $log)"
  say "installing them"
  apt install --no-install-recommends --no-remove "$@" ||
    die "apt-get could not install the packages (above; all of it in $log)"
}

install_packages() {
  local want_rust=$1
  shift
  if [ "$(id -u)" -eq 0 ]; then
    install_as_root "$want_rust" "$@"
    return
  fi
  local what="$*"
  [ "$want_rust" = no ] || what="$what and Rust >= $rust_min"
  command -v sudo >/dev/null || die "missing: $what" \
    "There is no sudo here: as root, run tools/setup.sh, then come back."
  say "missing: $what"
  say "sudo is asked for once, to install these Debian packages with apt-get and for nothing else"
  sudo -p 'setup: password of %u for apt-get: ' bash tools/setup.sh --as-root "$want_rust" "$@" ||
    die "the packages could not be installed; as root, run tools/setup.sh, then come back."
}

install_rust_by_rustup() {
  local found
  found=$(cargo_version)
  if command -v rustup >/dev/null; then
    die "the Rust tool chain is ${found:-not set}; Lorry needs $rust_min or newer." \
      "You have rustup: run 'rustup update stable && rustup default stable', then this again."
  fi
  say "installing the Rust tool chain with rustup into ${CARGO_HOME:-$HOME/.cargo} (about 300 MB)"
  curl --proto '=https' --tlsv1.2 -sSf --retry 3 https://sh.rustup.rs -o build/rustup-init.sh &&
    sh build/rustup-init.sh -y --profile minimal --no-modify-path >>"$log" 2>&1 ||
    die "missing: a Rust tool chain >= $rust_min (found: ${found:-none}); rustup could not be installed." \
      "Install it as https://rustup.rs says, or a package of it, so that 'cargo --version' says $rust_min or more."
}

mkdir -p build
if [ "${1:-}" = --as-root ]; then
  shift
  install_as_root "$@"
  exit
fi
lists=(tools/packages.txt "$@")

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  mapfile -t missing < <(missing_packages)
  want_rust=yes
  if have_rust; then want_rust=no; fi
  # With rustup there, the tool chain is rustup's business.
  if command -v rustup >/dev/null; then want_rust=no; fi
  if [ ${#missing[@]} -gt 0 ] || [ "$want_rust" = yes ]; then
    : >"$log"
    install_packages "$want_rust" "${missing[@]}"
  fi
else
  for tool in c++ cmake ninja pkg-config python3 curl; do
    command -v "$tool" >/dev/null || die "missing: $tool" \
      "This is not a Debian system: install the equivalents of tools/packages.txt, then this again."
  done
fi

hash -r
have_rust || install_rust_by_rustup
hash -r
have_rust || die "cargo says '$(cargo_version)' after the installation; Lorry needs $rust_min or newer."
say "everything is there (Rust $(cargo_version), $(cmake --version | head -n 1))"

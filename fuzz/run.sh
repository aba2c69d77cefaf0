#!/usr/bin/env bash
# Builds the fuzzers and runs each for SECONDS (60), two at a time, beginning with the kept inputs in
# fuzz/corpus/NAME. Fails on any finding; its input is then in build/fuzz/findings.
#
#   fuzz/run.sh [--keep] [SECONDS] [NAME...]     NAME: http, request, ... (all)
#
# New inputs are thrown away; with --keep the corpus becomes the smallest set of its own and the new
# inputs that reaches as much.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keep=no
if [ "${1:-}" = --keep ]; then
  keep=yes
  shift
fi
seconds=${1:-60}
shift || true
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
  for source in fuzz/*_fuzzer.cpp; do names+=("$(basename "$source" _fuzzer.cpp)"); done
fi

command -v clang++-19 >/dev/null || { echo "fuzz/run.sh needs clang-19 (tools/setup.sh installs it)" >&2; exit 1; }
export PATH="$HOME/.cargo/bin:$PATH"
[ -e build/fuzz/build.ninja ] || cmake --preset fuzz >/dev/null
cmake --build --preset fuzz -- --quiet
mkdir -p build/fuzz/findings

# The Rust library reports a panic on stderr and returns an error: only noise here.
export ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1

fuzz_one() {
  local name=$1 seconds=$2 keep=$3 fuzzer log new
  fuzzer=build/fuzz/fuzz/${name}_fuzzer
  log=build/fuzz/findings/$name.log
  new=$(mktemp -d)
  local options=(-timeout=20 -rss_limit_mb=3072 -max_len=16384 -artifact_prefix="build/fuzz/findings/$name-")
  [ ! -e "fuzz/dictionaries/$name.dict" ] || options+=(-dict="fuzz/dictionaries/$name.dict")
  mkdir -p "fuzz/corpus/$name"
  local status=0
  "$fuzzer" "${options[@]}" -max_total_time="$seconds" -print_final_stats=1 \
    "$new" "fuzz/corpus/$name" >"$log" 2>&1 || status=$?
  if [ $status -ne 0 ]; then
    { echo "fuzz $name: FAILED"; grep -v '^#' "$log" | tail -n 60; } >&2
    rm -rf "$new"
    return 1
  fi
  if [ "$keep" = yes ]; then
    local small
    small=$(mktemp -d)
    if "$fuzzer" "${options[@]}" -merge=1 "$small" "fuzz/corpus/$name" "$new" >"$log.merge" 2>&1; then
      rm -rf "fuzz/corpus/$name"
      mv "$small" "fuzz/corpus/$name"
      chmod 755 "fuzz/corpus/$name"
    fi
  fi
  rm -rf "$new"
  awk -v name="$name" -v seconds="$seconds" '
    match($0, /cov: [0-9]+/) { cov = substr($0, RSTART + 5, RLENGTH - 5) }
    /stat::number_of_executed_units/ { runs = $2 }
    /stat::peak_rss_mb/ { rss = $2 }
    END { printf "fuzz %-12s %10d executions in %d s, coverage %d, %d MB\n", name, runs, seconds, cov, rss }' "$log"
}
export -f fuzz_one

printf '%s\n' "${names[@]}" | xargs -P 2 -I {} bash -c 'fuzz_one {} '"$seconds $keep"

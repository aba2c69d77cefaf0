#!/usr/bin/env bash
# Checks and measures the CUDA backend on a GPU, with the programs that tools/gpu_bundle.sh made in
# build/gpu.tar.xz (nothing is built here). Prints one table; what the programs said is kept in the folder
# given, or bench/results/gpu. Takes less than 9 minutes: each step has a limit, and says when it was
# reached.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-bench/results/gpu}
bundle=build/gpu
[ -x $bundle/test_ops_gpu ] || [ ! -e $bundle.tar.xz ] || tar -C build -xJf $bundle.tar.xz
[ -x $bundle/test_ops_gpu ] || { echo "run_on_gpu: run tools/gpu_bundle.sh first" >&2; exit 2; }
mkdir -p "$out"
export LD_LIBRARY_PATH=$PWD/$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
$bundle/lorry env >/dev/null 2>&1 || export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$PWD/$bundle/lib-c++
failed=0
rows=()

# step NAME SECONDS COMMAND...: one row; the log is NAME.log.
step() {
  local name=$1 limit=$2 start=$SECONDS result
  shift 2
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  case $? in
    0) result=passed ;;
    124 | 137) result="over ${limit} s" ;;
    *) result=FAILED ;;
  esac
  [ "$result" = passed ] || failed=1
  rows+=("$(printf '%-28s %-12s %4d s  %s' "$name" "$result" $((SECONDS - start)) \
    "$(summary "$out/$name.log")")")
  echo "${rows[-1]}"
}

# The last line that says something: of tests the counts and the first failure, of benches figures.
summary() {
  local counts first
  counts=$(grep -E '^\[  (PASSED|FAILED)  \] [0-9]+ test' "$1" | tr -s ' ' | tr '\n' ' ')
  first=$(grep -m 1 -E '^\[  FAILED  \] [A-Za-z]' "$1")
  if [ -n "$counts" ]; then
    echo "$counts${first:+first: $first}"
  else
    grep -E '^(decode|prefill) ' "$1" | awk '{print $1 " b" $2 " a" $3 ": " $5 " tok/s,"}' |
      tr '\n' ' ' | cut -c 1-200
  fi
}

bench() {  # NAME SECONDS ARGS...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" $bundle/lorry bench --device cuda "$@"
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total \
  --format=csv,noheader | tee "$out/gpu.txt"
$bundle/lorry env | tee "$out/env.txt" | grep '^cuda'
if ! $bundle/lorry env --json | grep -q '"usable":true'; then
  echo "run_on_gpu: there is no GPU that these programs can use; nothing was run" >&2
  exit 3
fi
step ops 90 $bundle/test_ops_gpu --gtest_brief=1
step golden 40 $bundle/test_engine_gpu --gtest_brief=1 --gtest_filter='*Golden*'
step engine 40 $bundle/test_engine_gpu --gtest_brief=1 --gtest_filter='-*Golden*:*nvarian*'
# Random weights in the shapes of the published models; what the card has no room for says so.
mixtral=(--model synthetic:mixtral-8x7b)
bench mixtral-bf16 60 "${mixtral[@]}" --kind decode --batch 1 16 64
bench mixtral-bf16-prompt 30 "${mixtral[@]}" --kind prefill --batch 1 8 --tokens 2048
bench mixtral-bf16-adapters 60 "${mixtral[@]}" --kind all --batch 16 --adapters 0 16 --tokens 2048
bench mixtral-bf16-context 30 "${mixtral[@]}" --kind decode --batch 1 16 --context 4096
bench mixtral-f16 40 "${mixtral[@]}" --dtype float16 --kind all --batch 1 16 --tokens 2048
bench mixtral-int8 40 "${mixtral[@]}" --quantize int8 --kind all --batch 1 16 --tokens 2048
bench dbrx-int4 40 --model synthetic:dbrx --quantize int4 --kind all --batch 1 16 --tokens 2048
step invariance 120 $bundle/test_engine_gpu --gtest_brief=1 --gtest_filter='*nvarian*'
{
  cat "$out/gpu.txt" 2>/dev/null
  printf '%s\n' "${rows[@]}"
} >"$out/table.txt"
exit $failed

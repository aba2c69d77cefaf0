#!/usr/bin/env bash
# One model in several processes, from outside: the clients' tests unchanged on two ranks; where OpenMPI
# is installed also the logits of two and three ranks of mpirun, which must be those of as many with
# --num-shard bit by bit; as root with network namespaces also four hosts, and what a lost one does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
lorry=$PWD/build/release/lorry
work=$(mktemp -d)
trap 'tests/ranks/hosts.sh down 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/lorry" <<EOF
#!/usr/bin/env bash
command=\$1
shift
case " \$* " in
  *" --num-shard "* | *" --tensor-parallel-size "*) exec $lorry "\$command" "\$@" ;;  # tests of these flags
esac
exec $lorry "\$command" --num-shard 2 "\$@"
EOF
chmod +x "$work/lorry"
tests/clients/run.sh --lorry "$work/lorry" -q

if ! command -v mpirun >/dev/null; then
  echo "ranks: mpirun is not installed (Debian: openmpi-bin): its part is skipped"
  exit 0
fi
model=$PWD/tests/golden/mixtral-base/model
adapter=$PWD/tests/golden/mixtral-base/adapters/experts-r8
echo '[{"tokens": [1, 2, 3, 4, 5]}, {"tokens": [7, 8, 9], "adapter": "x"}]' >"$work/prompts.json"
logits=(logits "$model" --prompts "$work/prompts.json" --adapter "x=$adapter" --dtype float32 --threads 1)
mpi=(mpirun --allow-run-as-root --oversubscribe)

same() {
  cmp "$1" "$2" || { echo "ranks: $3: other bits than --num-shard"; exit 1; }
  echo "ranks: $3: the bits of --num-shard"
}
for n in 2 3 4; do
  "$lorry" "${logits[@]}" --num-shard $n --out "$work/shared$n" 2>/dev/null
done
for n in 2 3; do
  "${mpi[@]}" -np $n "$lorry" "${logits[@]}" --out "$work/mpi$n" 2>/dev/null
  same "$work/shared$n" "$work/mpi$n" "mpirun -np $n"
done

"${mpi[@]}" -np 3 build/release/bench/bench_comm --kib 8 128 8192 --seconds 0.02 >/dev/null ||
  { echo "ranks: sums over MPI are not those of shared memory"; exit 1; }
echo "ranks: sums over MPI are those of shared memory"

# What mpirun does with its signals: USR1 reaches the ranks, which drain; TERM leaves them a second.
ends_by() {
  local signal=$1 port streams=""
  "${mpi[@]}" -np 2 "$lorry" serve demo --port 0 --threads 1 >"$work/log" 2>&1 &
  for _ in $(seq 300); do grep -q "Try: " "$work/log" && break; sleep 0.1; done
  port=$(sed -n 's|^Try: curl http://127.0.0.1:\([0-9]*\)/.*|\1|p' "$work/log")
  for i in $(seq 16); do
    curl -sN "http://127.0.0.1:$port/generate_stream" -H 'Content-Type: application/json' -d '{"inputs": "Hello",
      "parameters": {"max_new_tokens": 900, "ignore_eos_token": true, "details": true}}' >"$work/stream$i" &
    streams="$streams $!"
  done
  for _ in $(seq 3000); do grep -q '"token"' "$work/stream16" && break; sleep 0.01; done
  kill "-$signal" %?serve
  status=0
  wait %?serve || status=$?
  wait $streams || true
}
ends_by USR1
whole=$(grep -l '"generated_tokens":900' "$work"/stream* | wc -l)
[ "$status" = 0 ] && [ "$whole" = 16 ] ||
  { echo "ranks: mpirun with SIGUSR1: status $status, $whole of 16 streams are whole"; tail -3 "$work/log"; exit 1; }
echo "ranks: SIGUSR1 to mpirun drains all"
ends_by TERM
[ $status != 0 ] && grep -q "shutting down" "$work/log" ||
  { echo "ranks: mpirun with SIGTERM: status $status"; tail -3 "$work/log"; exit 1; }
echo "ranks: SIGTERM to mpirun ends all"

if [ "$(id -u)" != 0 ] || ! tests/ranks/hosts.sh up 4 2>/dev/null; then
  echo "ranks: no network namespaces here: several hosts are skipped"
  exit 0
fi
printf '#!/usr/bin/env bash\nexec "%s" ssh "$@"\n' "$PWD/tests/ranks/hosts.sh" >"$work/agent"
chmod +x "$work/agent"
over_hosts="mpirun --allow-run-as-root --mca plm_rsh_agent $work/agent --mca btl tcp,self
  --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 --mca oob_tcp_keepalive_time 1
  --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 1 --host 10.97.0.1,10.97.0.2"
on_first() { tests/ranks/hosts.sh ssh 10.97.0.1 "$(echo $*)"; }

on_first "$over_hosts,10.97.0.3,10.97.0.4 -np 4 $lorry ${logits[*]} --out $work/hosts" 2>/dev/null
same "$work/shared4" "$work/hosts" "four hosts"

# Serves on the first `$1` hosts, answers, and ends when the second one is lost.
serve_on() {
  local n=$1 more=$2 begin ms
  on_first "$over_hosts$more -np $n $lorry serve $model --port 3999 --threads 1" >"$work/log$n" 2>&1 &
  for _ in $(seq 300); do grep -q "Try: " "$work/log$n" 2>/dev/null && break; sleep 0.1; done
  ip netns exec lorry-h1 curl -sf http://127.0.0.1:3999/generate -H 'Content-Type: application/json' \
    -d '{"inputs": "Hello", "parameters": {"max_new_tokens": 4}}' | grep -q generated_text
  begin=$(date +%s%N)
  ip netns pids lorry-h2 | xargs -r kill -9
  wait $! && { echo "ranks: a lost host: mpirun ended well"; exit 1; }
  ms=$((($(date +%s%N) - begin) / 1000000))
  [ $ms -lt 5000 ] || { echo "ranks: a lost host of $n ended all after $ms ms"; exit 1; }
  echo "ranks: $n hosts answer, and a lost one ends all, after $ms ms"
}
serve_on 2 ""
serve_on 4 ",10.97.0.3,10.97.0.4"

#!/usr/bin/env bash
# Hosts in network namespaces: `hosts.sh up N` makes lorry-h1 ... lorry-hN on one bridge, with the
# addresses 10.97.0.1 ...; `hosts.sh down` takes them away; `hosts.sh ssh ADDRESS COMMAND...` runs a
# command on one of them, as mpirun's remote agent does. Needs root.
set -euo pipefail
net=10.97.0

down() {
  for ns in $(ip netns list 2>/dev/null | awk '/^lorry-h/ { print $1 }'); do
    ip netns pids "$ns" | xargs -r kill -9 2>/dev/null || true
    ip netns del "$ns"
  done
  for link in $(ip -o link | awk -F '[ :@]+' '$2 ~ /^lorry-(v|br)/ { print $2 }'); do
    ip link del "$link" 2>/dev/null || true
  done
}

up() {
  down
  ip link add lorry-br type bridge
  ip link set lorry-br up
  for i in $(seq "$1"); do
    ip netns add "lorry-h$i"
    ip link add "lorry-v$i" type veth peer name eth0 netns "lorry-h$i"
    ip link set "lorry-v$i" master lorry-br up
    ip -n "lorry-h$i" addr add "$net.$i/24" dev eth0
    ip -n "lorry-h$i" link set eth0 up
    ip -n "lorry-h$i" link set lo up
  done
}

# A host has a name of its own: OpenMPI takes equal names for one host.
remote() {
  local i=${1##*.}
  shift
  exec ip netns exec "lorry-h$i" unshare --uts bash -c "hostname lorry-h$i; $*"
}

case $1 in
  up) up "$2" ;;
  down) down ;;
  ssh) shift; remote "$@" ;;
  *) exit 2 ;;
esac

#!/bin/sh
# What an operator can do with etcdctl alone: inspect, resize, evict, remove.
#
#   etcdsem dev -- sh examples/by_hand.sh
#
# Everything about a semaphore is plain text under /etcdsem/<name>/; docs/keys.md lists the keys.
# `etcdsem status`, `limit`, `evict` and `close` are shorter ways to do the same.
set -eu

name=${1:-by-hand}
base=/etcdsem/$name

wait_until() { # wait_until "number of holders" "number of waiters"
  tries=0
  until [ "$(keys leases | grep -c .)" = "$1" ] && [ "$(keys waiters | grep -c .)" = "$2" ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "timed out waiting for $1 held, $2 waiting" >&2; exit 1; }
    sleep 0.1
  done
  echo "   -> $1 held, $2 waiting"
}

keys() { etcdctl get --prefix --keys-only "$base/$1/" | grep . || true; }

# Three jobs with a limit of two.
for job in 1 2 3; do
  etcdsem run "$name" --limit 2 --quiet -- sleep 60 2>/dev/null &
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
wait_until 2 1

echo "1. Who holds? One line of JSON for each slot."
etcdctl get --prefix --print-value-only "$base/leases/"

echo "2. Resize the live semaphore: the waiter gets the new slot."
etcdctl put "$base/max_leases" 3 >/dev/null
wait_until 3 0

echo "3. Evict the holder of slot 1: its job is stopped, with exit code 70."
etcdctl del "$base/leases/00001" >/dev/null
wait_until 2 0

echo "4. Evict a holder by its etcd lease, which is in the record."
lease=$(etcdctl get --print-value-only "$base/leases/00000" | sed 's/.*"lease":"\([0-9a-f]*\)".*/\1/')
etcdctl lease revoke "$lease" >/dev/null
wait_until 1 0

echo "5. Remove the semaphore (note the trailing slash): the last job is stopped, too."
etcdctl del --prefix "$base/" >/dev/null
wait_until 0 0

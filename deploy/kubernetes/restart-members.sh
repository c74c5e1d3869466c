#!/bin/sh
# restart-members.sh [NAMESPACE]: restart etcd's members one at a time, after a change of their
# StatefulSet (a new image, for instance). Members that have the change already are left alone, so
# that it can be run again. Before each restart it waits until every member is ready, that is, until
# a read through the quorum succeeds on it. Needs kubectl 1.31 or later.
set -eu
namespace=${1:-etcdsem}
patience=${PATIENCE:-10m}

k() { kubectl --namespace "$namespace" "$@"; }
field() { k get "$1" --output "jsonpath={$2}"; }

replicas=$(field statefulset/etcd .spec.replicas)

wait_for_all() {
  number=0
  while [ "$number" -lt "$replicas" ]; do
    k wait "pod/etcd-$number" --for=create --timeout="$patience" >/dev/null
    k wait "pod/etcd-$number" --for=condition=Ready --timeout="$patience"
    number=$((number + 1))
  done
}

k wait statefulset/etcd --timeout="$patience" \
  --for=jsonpath='{.status.observedGeneration}'="$(field statefulset/etcd .metadata.generation)"
revision=$(field statefulset/etcd .status.updateRevision)
member=$replicas
while [ "$member" -gt 0 ]; do
  member=$((member - 1))
  wait_for_all
  has=$(field "pod/etcd-$member" '.metadata.labels.controller-revision-hash')
  [ "$has" = "$revision" ] || k delete "pod/etcd-$member" # returns when the pod has ended
done
wait_for_all
echo "all $replicas members have revision $revision and are ready"

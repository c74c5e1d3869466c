#!/bin/sh
# certificates.sh NAMESPACE DIR [TEAM...]: create a CA and the certificates of the production overlay
# with openssl, as kustomizations of Secrets. For clusters without cert-manager.
#
#   kubectl apply -k DIR         into NAMESPACE: etcd's servers, root, and the exporter
#   kubectl apply -k DIR/TEAM    into the namespace TEAM: its client certificate; the user is TEAM
#   DIR/operator                 for your own machine: may read and write all semaphores
#
# The certificates are valid for a year (or $DAYS); run it again in time: the CA (ten years) is kept,
# and etcd and etcdsem re-read renewed files by themselves. Keep DIR/authority.key away from the cluster, and
# all of DIR out of version control.
set -eu
[ $# -ge 2 ] || { echo "usage: certificates.sh NAMESPACE DIR [TEAM...]" >&2; exit 64; }
namespace=$1 directory=$2
shift 2
umask 077
mkdir -p "$directory"
cd "$directory"

[ -e authority.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
  -days 3650 -subj "/CN=etcd of $namespace" -keyout authority.key -out authority.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null

# certificate FOLDER COMMON-NAME USAGES NAMES
certificate() {
  mkdir -p "$1"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" \
    -keyout "$1/tls.key" -out "$1/request" 2>/dev/null
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$3"
    [ -z "$4" ] || echo "subjectAltName=$4"
  } >"$1/extensions"
  openssl x509 -req -in "$1/request" -CA authority.crt -CAkey authority.key -CAcreateserial \
    -days "${DAYS:-365}" -extfile "$1/extensions" -out "$1/tls.crt" 2>/dev/null
  cp authority.crt "$1/ca.crt"
  rm "$1/request" "$1/extensions"
}

members=
for number in 0 1 2; do
  members="$members,DNS:etcd-$number.etcd-members.$namespace.svc"
done
certificate etcd-server-tls etcd-server serverAuth,clientAuth \
  "DNS:localhost,IP:127.0.0.1,DNS:etcd,DNS:etcd.$namespace.svc$members"
certificate etcd-peer-tls etcd-peer serverAuth,clientAuth "${members#,}"
# the common name is the etcd user
certificate etcd-root-tls root clientAuth ""
certificate etcdsem-view-tls etcdsem-view clientAuth ""
certificate operator etcdsem-operator clientAuth ""

# kustomization FOLDER NAMESPACE: secrets follow
kustomization() {
  {
    echo "apiVersion: kustomize.config.k8s.io/v1beta1"
    echo "kind: Kustomization"
    echo "namespace: $2"
    echo "generatorOptions:"
    echo "  disableNameSuffixHash: true"
    echo "secretGenerator:"
  } >"$1/kustomization.yaml"
}

# secret KUSTOMIZATION NAME FOLDER
secret() {
  echo "  - {name: $2, type: kubernetes.io/tls, files: [${3}ca.crt, ${3}tls.crt, ${3}tls.key]}" \
    >>"$1/kustomization.yaml"
}

kustomization . "$namespace"
for name in etcd-server-tls etcd-peer-tls etcd-root-tls etcdsem-view-tls; do
  secret . $name $name/
done
secret . etcdsem-operator-tls operator/
for team; do
  certificate "$team" "$team" clientAuth ""
  kustomization "$team" "$team"
  secret "$team" etcdsem-client-tls ""
done
echo "done; now run kubectl apply -k on $directory and on each team's folder in it"

#!/bin/sh
# certificates.sh NAMESPACE DIR: create a CA and the certificates of the production overlay with
# openssl, as a kustomization of Secrets:  kubectl apply -k DIR
#
# For clusters without cert-manager. The certificates are valid for a year; run it again in time:
# the CA (ten years) is kept, and etcd and etcdsem re-read renewed files by themselves. Keep
# DIR/authority.key away from the cluster, and all of DIR out of version control.
set -eu
[ $# = 2 ] || { echo "usage: certificates.sh NAMESPACE DIR" >&2; exit 64; }
namespace=$1
umask 077
mkdir -p "$2"
cd "$2"

[ -e authority.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
  -days 3650 -subj "/CN=etcd of $namespace" -keyout authority.key -out authority.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null

# certificate SECRET COMMON-NAME USAGES NAMES
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
    -days 365 -extfile "$1/extensions" -out "$1/tls.crt" 2>/dev/null
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
certificate etcdsem-client-tls etcdsem clientAuth ""
certificate etcdsem-view-tls etcdsem-view clientAuth ""

{
  echo "apiVersion: kustomize.config.k8s.io/v1beta1"
  echo "kind: Kustomization"
  echo "namespace: $namespace"
  echo "generatorOptions:"
  echo "  disableNameSuffixHash: true"
  echo "secretGenerator:"
  for secret in etcd-server-tls etcd-peer-tls etcd-root-tls etcdsem-client-tls etcdsem-view-tls; do
    echo "  - name: $secret"
    echo "    type: kubernetes.io/tls"
    echo "    files: [$secret/ca.crt, $secret/tls.crt, $secret/tls.key]"
  done
} >kustomization.yaml
echo "done; now run: kubectl apply -k $2"

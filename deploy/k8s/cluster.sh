#!/usr/bin/env bash
# The example cluster in Kubernetes; see "deploy/k8s/cluster.sh --help". ./genCluster.sh --kubernetes calls it.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
namespace=${LANCE_NAMESPACE:-lance}
overlay=${LANCE_OVERLAY:-dev}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
image=${LANCE_IMAGE:-lance:$version}
rendered=$root/target/example-cluster
ours=app.kubernetes.io/part-of=lance
pods=app.kubernetes.io/name=lance,app.kubernetes.io/component=broker

usage() {
    cat <<TEXT
Usage: deploy/k8s/cluster.sh [recreate|status|clean|help]

  recreate  delete the example cluster with its data, make a new one, and wait until all its nodes are ready; the default
  status    show the pods and the cluster
  clean     delete the example cluster with its data; the namespace stays
  help      show this text

It works with the cluster that kubectl's current context names. A StatefulSet "lance" that this script has not made is left
alone, with everything around it.

Environment:
  LANCE_NAMESPACE  namespace (lance)
  LANCE_IMAGE      image of the nodes (lance:$version); ./build.sh makes it. In a cluster of kind it is loaded into the nodes
  LANCE_OVERLAY    overlay of deploy/k8s/overlays (dev)
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'cluster.sh: %s\n' "$*" >&2
    exit 1
}
kube() { kubectl --namespace "$namespace" "$@"; }

reachable() {
    [[ $namespace =~ ^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || die "LANCE_NAMESPACE=$namespace is not the name of a namespace"
    [[ -f $root/deploy/k8s/overlays/$overlay/kustomization.yaml ]] || die "there is no overlay $overlay in deploy/k8s/overlays"
    command -v kubectl >/dev/null || die "kubectl is not installed"
    kubectl version --request-timeout=20s >/dev/null || die "no cluster of Kubernetes answers; kubectl says why above"
}

# Deletes what this script has made, volumes included.
delete() {
    local example
    if kube get statefulset/lance >/dev/null 2>&1; then
        example=$(kube get statefulset/lance --output 'jsonpath={.metadata.annotations.lance/example}')
        [[ $example == "true" ]] || die "statefulset/lance in $namespace is not the example cluster: delete it by hand if it may go"
    elif [[ -n $(kube get persistentvolumeclaims --selector "$pods" --output name) ]]; then
        die "there are volumes of LANCE in $namespace, but no example cluster: delete them by hand if they may go"
    else
        return 0
    fi
    say "Deleting the example cluster in $namespace"
    kube delete statefulset,service,poddisruptionbudget,networkpolicy,configmap,serviceaccount \
        --selector "$ours" --ignore-not-found --wait --timeout=5m
    kube delete pods --selector "$pods" --ignore-not-found --wait --timeout=5m
    kube delete persistentvolumeclaims --selector "$pods" --ignore-not-found --wait --timeout=5m
}

# The overlay in this namespace, with this image. The nodes' names, in their configuration, have the namespace in them.
render() {
    local config=$rendered/lance.toml source=$root/deploy/k8s/overlays/$overlay/lance.toml
    [[ -f $source ]] || source=$root/deploy/k8s/base/lance.toml
    rm -rf -- "$rendered"
    mkdir -p "$rendered"
    sed "s/\.lance\.svc:/.$namespace.svc:/" "$source" >"$config"
    cat >"$rendered/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: $namespace
resources:
  - ../../deploy/k8s/overlays/$overlay
images:
  - name: lance
    newName: ${image%:*}
    newTag: "${image##*:}"
configMapGenerator:
  - name: lance-config
    behavior: merge
    files:
      - lance.toml
patches:
  - patch: |
      apiVersion: apps/v1
      kind: StatefulSet
      metadata:
        name: lance
        annotations:
          lance/example: "true"
      spec:
        template:
          metadata:
            annotations:
              lance/config-sha256: $(sha256sum "$config" | cut -d ' ' -f 1)
YAML
}

# A cluster of kind has no registry to take a local image from.
load() {
    local context engine
    context=$(kubectl config current-context 2>/dev/null || true)
    [[ $context == kind-* ]] && command -v kind >/dev/null || return 0
    for engine in docker podman; do
        if "$engine" image inspect "$image" >/dev/null 2>&1; then
            kind load docker-image "$image" --name "${context#kind-}"
            return
        fi
    done
}

recreate() {
    delete
    render
    load
    kubectl apply --kustomize "$rendered"
    if ! kube rollout status statefulset/lance --timeout=5m; then
        kube get pods --selector "$pods" --output wide >&2 || true
        kube logs --selector "$pods" --prefix --tail=10 >&2 || true
        die "the nodes are not ready; the lines above say what they wait for"
    fi
    status
    cat <<TEXT

Use it:
  kubectl -n $namespace exec -i lance-0 -- /usr/bin/lance topic create hello --partitions 3
  printf 'one\ntwo\n' | kubectl -n $namespace exec -i lance-0 -- /usr/bin/lance produce hello
  kubectl -n $namespace exec lance-0 -- /usr/bin/lance consume hello --until-end

Delete it with its data: deploy/k8s/cluster.sh clean
TEXT
}

status() {
    kube get pods --selector "$pods" --output wide
    kube exec lance-0 --container lance -- /usr/bin/lance cluster status
}

(($# <= 1)) || die "one command at a time; see deploy/k8s/cluster.sh help"
case ${1:-recreate} in
    help | -h | --help) usage ;;
    recreate | status)
        reachable
        "${1:-recreate}"
        ;;
    clean)
        reachable
        delete
        ;;
    *)
        printf 'cluster.sh: unknown command %s; see deploy/k8s/cluster.sh help\n' "$1" >&2
        exit 2
        ;;
esac

{{- /* Put an object into the release's namespace. */ -}}
{{- define "etcdsem.place" }}
{{- $object := index . 0 }}
{{- if not (or (eq $object.kind "PriorityClass") (contains "AdmissionPolicy" $object.kind)) }}
  {{- $ignored := set $object.metadata "namespace" (index . 1) }}
{{- end }}
{{- end }}

{{- /* Set the images of an object's containers or of its policy, and remove etcd's CPU limit. */ -}}
{{- define "etcdsem.change" }}
{{- $object := index . 0 }}
{{- $values := index . 1 }}
{{- $spec := dig "jobTemplate" "spec" ($object.spec | default dict) ($object.spec | default dict) }}
{{- $pod := dig "template" "spec" dict $spec }}
{{- range $container := concat ($pod.initContainers | default list) ($pod.containers | default list) }}
  {{- $image := index $values.images $container.image }}
  {{- $ignored := set $container "image" (printf "%s:%s" $image.repository $image.tag) }}
{{- end }}
{{- if eq $object.kind "MutatingAdmissionPolicy" }}
  {{- $image := printf "%s:%s" $values.images.etcdsem.repository $values.images.etcdsem.tag }}
  {{- $ignored := set (index $spec.variables 0) "expression" (squote $image) }}
{{- end }}
{{- if and (eq $object.kind "StatefulSet") (not $values.cpuLimit) }}
  {{- $ignored := unset (index $pod.containers 0).resources.limits "cpu" }}
{{- end }}
{{- end }}

{{- /* The Job of a CronJob, run after each installation and upgrade. */ -}}
{{- define "etcdsem.hook" }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .metadata.name }}-hook
  namespace: {{ .metadata.namespace }}
  annotations:
    helm.sh/hook: post-install,post-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec: {{ toYaml .spec.jobTemplate.spec | nindent 2 }}
{{- end }}

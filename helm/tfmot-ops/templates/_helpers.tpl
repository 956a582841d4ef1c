{{- define "tfmot-ops.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An error in three parts, as everywhere in this project. */}}
{{- define "tfmot-ops.refuse" -}}
{{- fail (printf "\n%s\n  required: %s\n  received: %s\n  remedy:   %s" .what .required .received .remedy) }}
{{- end }}

{{- define "tfmot-ops.trackingUri" -}}
{{- if .Values.tracking.uri }}
{{- .Values.tracking.uri }}
{{- else if .Values.components.mlflow }}
{{- printf "http://%s.%s.svc" .Values.mlflow.fullnameOverride .Release.Namespace }}
{{- else }}
{{- include "tfmot-ops.refuse" (dict "what" "steps have no MLflow to record to" "required" "tracking.uri, as components.mlflow is false" "received" "nothing" "remedy" "set tracking.uri to the address of your MLflow, and networkPolicy.mlflow.to to its pods or its address range") }}
{{- end }}
{{- end }}

{{/* Constructor arguments of the default runner. A local or Docker runner takes runner.options as they are. */}}
{{- define "tfmot-ops.runnerOptions" -}}
{{- $options := dict }}
{{- if eq .Values.runner.name "kubernetes" }}
{{- $secrets := list }}
{{- range .Values.runner.secrets }}
{{- $secrets = append $secrets (dict "secretRef" (dict "name" .)) }}
{{- end }}
{{- $options = dict
  "image" .Values.runner.image
  "deferrable" .Values.runner.deferrable
  "namespace" .Values.jobs.namespace
  "service_account" .Values.jobs.serviceAccount.name
  "resources" .Values.runner.resources
  "node_selector" .Values.runner.nodeSelector
  "tolerations" .Values.runner.tolerations
  "annotations" .Values.runner.annotations
  "env_from" $secrets }}
{{- with .Values.gpu.fallback }}
{{- $_ := set $options "fallback" . }}
{{- end }}
{{- with .Values.gpu }}
{{- if .enabled }}
{{- $options = merge $options (dict
  "gpu_image" .image
  "gpus" (int .count)
  "gpu_node_selector" .nodeSelector
  "gpu_tolerations" .tolerations) }}
{{- end }}
{{- end }}
{{- end }}
{{- mergeOverwrite (deepCopy $options) .Values.runner.options | toJson }}
{{- end }}

{{/* A quantity in thousandths: whole numbers, where 0.1 would not be one. */}}
{{- define "tfmot-ops.milli" -}}
{{- $units := dict "m" 1 "" 1e3 "k" 1e6 "M" 1e9 "G" 1e12 "T" 1e15 "P" 1e18 "E" 1e21
  "Ki" 1024e3 "Mi" 1048576e3 "Gi" 1073741824e3 "Ti" 1099511627776e3 "Pi" 1125899906842624e3 "Ei" 1152921504606846976e3 }}
{{- $unit := regexFind "[a-zA-Z]*$" . }}
{{- mulf (trimSuffix $unit .) (get $units $unit) | printf "%.0f" }}
{{- end }}

{{/* What one step takes of a resource of the quota, in thousandths; 0 for what it takes nothing of. As Kubernetes counts:
a request that is not given is the limit, and what is given in neither is the LimitRange's. */}}
{{- define "tfmot-ops.taken" -}}
{{- $kind := ternary "limits" "requests" (hasPrefix "limits." .resource) }}
{{- $name := .resource | trimPrefix "limits." | trimPrefix "requests." }}
{{- if eq $name "pods" "count/pods" }}
{{- 1000 }}
{{- else if eq $name "nvidia.com/gpu" }}
{{- mul 1000 (default 1 .options.gpus) }}
{{- else }}
{{- /* The runner's, of the sidecar that hands the result over. */}}
{{- $sidecar := dict "requests" (dict "cpu" "10m" "memory" "16Mi") "limits" (dict "cpu" "100m" "memory" "64Mi") }}
{{- $places := list .options.resources.limits .limitRange.default }}
{{- if eq $kind "requests" }}
{{- $places = list .options.resources.requests .options.resources.limits .limitRange.defaultRequest .limitRange.default }}
{{- end }}
{{- $step := "" }}
{{- range $places }}
{{- $step = default (get (default dict .) $name) $step }}
{{- end }}
{{- addf (include "tfmot-ops.milli" (default "0" $step)) (include "tfmot-ops.milli" (dig $kind $name "0" $sidecar)) | printf "%.0f" }}
{{- end }}
{{- end }}

{{/* How many steps the quota admits at once, and by which of its resources; without one, the slots that Airflow gives its
pool by itself. */}}
{{- define "tfmot-ops.admitted" -}}
{{- $steps := 128 }}
{{- $by := "" }}
{{- if eq .Values.runner.name "kubernetes" }}
{{- $options := include "tfmot-ops.runnerOptions" . | fromJson }}
{{- range $resource, $hard := .Values.jobs.quota }}
{{- $taken := include "tfmot-ops.taken" (dict "resource" $resource "options" $options "limitRange" $.Values.jobs.limitRange) | float64 }}
{{- if $taken }}
{{- $room := divf (include "tfmot-ops.milli" $hard) $taken | floor | int }}
{{- if or (not $by) (lt $room $steps) }}
{{- $steps = $room }}
{{- $by = $resource }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "steps" $steps "by" $by | toJson }}
{{- end }}

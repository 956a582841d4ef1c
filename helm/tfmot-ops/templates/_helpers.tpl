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
  "gpu_image" .Values.gpu.image
  "gpus" (int .Values.gpu.count)
  "gpu_node_selector" .Values.gpu.nodeSelector
  "deferrable" .Values.runner.deferrable
  "namespace" .Values.jobs.namespace
  "service_account" .Values.jobs.serviceAccount.name
  "resources" .Values.runner.resources
  "node_selector" .Values.runner.nodeSelector
  "tolerations" .Values.runner.tolerations
  "annotations" .Values.runner.annotations
  "env_from" $secrets }}
{{- if .Values.gpu.enabled }}
{{- $_ := set $options "device" "gpu" }}
{{- $_ := set $options "tolerations" (concat .Values.runner.tolerations .Values.gpu.tolerations) }}
{{- end }}
{{- end }}
{{- mergeOverwrite $options .Values.runner.options | toJson }}
{{- end }}

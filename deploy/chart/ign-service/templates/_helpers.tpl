{{/* Name of everything in the release; suffixes of 20 characters fit behind it. */}}
{{- define "ign.name" -}}
{{ .Release.Name | replace "." "-" | trunc 43 | trimSuffix "-" }}
{{- end }}

{{- define "ign.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ign.labels" -}}
{{ include "ign.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ign.metadata" -}}
name: {{ include "ign.name" . }}
labels:
  {{- include "ign.labels" . | nindent 2 }}
{{- end }}

{{- define "ign.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:
{{- $target := ternary "gpu" "cpu" (gt (int .Values.gpu.count) 0) }}
{{- .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $target) }}{{ end }}
{{- end }}

{{/* The Secret of the API keys, where requests are served. */}}
{{- define "ign.keys" -}}
{{ if ne .Values.workload "job" }}{{ .Values.keys.secret }}{{ end }}
{{- end }}

{{/* A value as the service reads it: Helm holds numbers as floats, and would write 33554432 as 3.3554432e+07. */}}
{{- define "ign.text" -}}
{{ if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "ign.bodyBytes" -}}
{{ include "ign.text" (.Values.settings.IGN_MAX_BODY_BYTES | default 16777216) }}
{{- end }}

{{- define "ign.streamSeconds" -}}
{{ include "ign.text" (.Values.settings.IGN_STREAM_TIMEOUT_S | default 900) }}
{{- end }}

{{/* As service/settings.py has it: without IGN_DRAIN_S, the delay and the seconds of a request. */}}
{{- define "ign.drainSeconds" -}}
{{- with .Values.settings }}
{{- .IGN_DRAIN_S | default (addf (.IGN_DRAIN_DELAY_S | default 0) (.IGN_REQUEST_TIMEOUT_S | default 30)) | float64 | ceil | int }}
{{- end }}
{{- end }}

{{/* Before the signal, IGN_DRAIN_S, within which IGN_DRAIN_DELAY_S lies, and something over for closing models. */}}
{{- define "ign.graceSeconds" -}}
{{ add .Values.preStopSeconds (include "ign.drainSeconds" . | int) 10 }}
{{- end }}

{{/* The settings, with those that follow from other values, as YAML. */}}
{{- define "ign.settings" -}}
{{- $told := dict }}
{{- range $name, $value := .Values.settings }}{{ $_ := set $told $name (include "ign.text" $value) }}{{ end }}
{{- if include "ign.keys" . }}{{ $_ := set $told "IGN_API_KEYS_FILE" "/run/ign/keys.json" }}{{ end }}
{{- if eq .Values.models.source "image" }}
{{- else if eq .Values.workload "kserve" }}{{ $_ := set $told "IGN_MODEL_DIR" "/mnt/models" }}
{{- else if eq .Values.models.source "bucket" }}{{ $_ := set $told "IGN_MODEL_DIR" .Values.models.bucket }}{{ $_ := set $told "IGN_MODEL_CACHE" "/models" }}
{{- else }}{{ $_ := set $told "IGN_MODEL_DIR" "/models" }}{{ end }}
{{- if gt (int .Values.gpu.count) 1 }}{{ $_ := set $told "IGN_GPU_COUNT" (include "ign.text" .Values.gpu.count) }}{{ end }}
{{- if eq .Values.workload "kserve" }}{{ $_ := set $told "IGN_PORT" "8080" }}{{ end }}
{{- toYaml $told }}
{{- end }}

{{/* env and envFrom of a container. Ray's replicas read the settings from their application. */}}
{{- define "ign.env" -}}
{{- $settings := ternary dict (include "ign.settings" . | fromYaml) (eq .Values.workload "ray") }}
{{- if or $settings .Values.env }}
env:
  {{- range $name, $value := $settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- if or .Values.envFrom .Values.models.secret }}
envFrom:
  {{- with .Values.models.secret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
  {{- with .Values.envFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "ign.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.count }}
{{- $_ := set $resources "limits" (merge (dict .Values.gpu.resource (include "ign.text" .Values.gpu.count)) ($resources.limits | default dict)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Probes. .root is the root, .port the port. */}}
{{- define "ign.probes" -}}
# Opening a model, choosing kernels and reproducing its golden rows.
startupProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 300
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  {{- if .root.Values.gpu.count }}
  # What keeps a GPU from being used is often cured by another process alone, so a pod that is not ready for five minutes
  # is started anew.
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 30
  {{- else }}
  # Says only that the process answers, so a busy or draining one is left alone.
  httpGet: {path: /healthz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
  {{- end }}
{{- end }}

{{- define "ign.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  {{- if ne .Values.workload "ray" }}{{/* which writes into its home */}}
  readOnlyRootFilesystem: true
  {{- end }}
{{- end }}

{{- define "ign.volumeMounts" -}}
{{- $mounts := list }}
{{- if ne .Values.workload "ray" }}{{ $mounts = append $mounts (dict "name" "tmp" "mountPath" "/tmp") }}{{ end }}
{{- if include "ign.keys" . }}{{ $mounts = append $mounts (dict "name" "keys" "mountPath" "/run/ign" "readOnly" true) }}{{ end }}
{{- if and (ne .Values.models.source "image") (ne .Values.workload "kserve") }}
{{- $folder := ternary (dict "subPath" "models") dict (eq .Values.models.source "volume") }}{{/* as KServe expects it */}}
{{- $mounts = append $mounts (merge (dict "name" "models" "mountPath" "/models" "readOnly" (ne .Values.models.source "bucket")) $folder) }}
{{- end }}
{{- dict "volumeMounts" (concat $mounts .Values.volumeMounts) | toYaml }}
{{- end }}

{{- define "ign.volumes" -}}
{{- $volumes := list }}
{{- if ne .Values.workload "ray" }}{{ $volumes = append $volumes (dict "name" "tmp" "emptyDir" (dict "sizeLimit" .Values.tmpSize)) }}{{ end }}
{{- with include "ign.keys" . }}{{ $volumes = append $volumes (dict "name" "keys" "secret" (dict "secretName" . "defaultMode" 288)) }}{{ end }}{{/* 0440 */}}
{{- if ne .Values.workload "kserve" }}
{{- with .Values.models }}
{{- $kind := get (dict
  "claim" (dict "persistentVolumeClaim" (dict "claimName" .claim "readOnly" true))
  "volume" (dict "image" (dict "reference" .volume "pullPolicy" $.Values.image.pullPolicy))
  "bucket" (dict "emptyDir" (dict "sizeLimit" .cacheSize))) .source }}
{{- if $kind }}{{ $volumes = append $volumes (merge (dict "name" "models") $kind) }}{{ end }}
{{- end }}
{{- end }}
{{- dict "volumes" (concat $volumes .Values.volumes) | toYaml }}
{{- end }}

{{/* What the pods of every workload have. .root is the root; .head says that it is the head of a Ray cluster. */}}
{{- define "ign.pod" -}}
{{- $values := .root.Values }}
{{- $gpu := and $values.gpu.count (not .head) }}
{{- $ray := eq $values.workload "ray" }}
{{- if not .head }}
serviceAccountName: {{ $values.serviceAccount.name | default (include "ign.name" .root) }}
# It asks the API server for nothing.
automountServiceAccountToken: false
{{- end }}
# Else a Service `ign` puts IGN_PORT=tcp://… into every pod of the namespace, with which the service does not start.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "ign.graceSeconds" .root }}
securityContext:
  runAsNonRoot: true
  # Those of the image. The keys are readable for this group alone.
  runAsUser: {{ ternary 1000 10001 $ray }}
  runAsGroup: {{ ternary 100 10001 $ray }}
  fsGroup: {{ ternary 100 10001 $ray }}
  seccompProfile: {type: RuntimeDefault}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $gpu }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if not .head }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if or $gpu $values.tolerations }}
tolerations:
  {{- if $gpu }}
  - {key: {{ $values.gpu.resource }}, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with $values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "ign.selector" $.root | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "ign.podMetadata" -}}
metadata:
  labels:
    {{- include "ign.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Service and port that ingress and gateway send requests to. */}}
{{- define "ign.backendName" -}}
{{ include "ign.name" . }}{{ if eq .Values.workload "ray" }}-serve-svc{{ end }}
{{- end }}
{{- define "ign.backendPort" -}}
{{ if eq .Values.workload "ray" }}8000{{ else }}{{ .Values.service.port }}{{ end }}
{{- end }}

{{/* There is rarely a GPU to spare: there the old pod leaves before the new one comes. */}}
{{- define "ign.rollout" -}}
rollingUpdate: {maxSurge: {{ ternary 0 1 (gt (int .Values.gpu.count) 0) }}, maxUnavailable: {{ ternary 1 0 (gt (int .Values.gpu.count) 0) }}}
{{- end }}

{{/* How fast an autoscaler acts. */}}
{{- define "ign.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}

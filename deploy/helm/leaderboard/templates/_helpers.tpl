{{- define "leaderboard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of objects: 40 characters at most, because other names append to it. */}}
{{- define "leaderboard.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "leaderboard.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels that never change in a release: Deployments and Services select by them. Takes (list context component). */}}
{{- define "leaderboard.selector" -}}
{{- $context := first . -}}
app.kubernetes.io/name: {{ include "leaderboard.name" $context }}
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "leaderboard.labels" -}}
{{- $context := first . -}}
{{ include "leaderboard.selector" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "leaderboard.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "leaderboard.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "leaderboard.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "leaderboard.migrationName" -}}
{{- printf "%s-migrate" (include "leaderboard.fullname" .) }}
{{- end }}

{{/* Name of the Secret that the chart creates. Not the release's name alone, which another Secret may have. */}}
{{- define "leaderboard.secret" -}}
{{- printf "%s-settings" (include "leaderboard.fullname" .) }}
{{- end }}

{{/* A setting as an environment variable. Helm reads integers as floats and would write 1e+06. */}}
{{- define "leaderboard.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}
{{- printf "%.0f" . | quote }}
{{- else }}
{{- toString . | quote }}
{{- end }}
{{- end }}

{{/* "true" if a secret setting is set. */}}
{{- define "leaderboard.given" -}}
{{- if or .value .secret }}true{{ end }}
{{- end }}

{{/* One secret setting as a variable. Takes (list context name secretOfTheChart). */}}
{{- define "leaderboard.secretEnv" -}}
{{- $name := index . 1 -}}
{{- $setting := index (first .).Values.secrets $name -}}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      {{- if $setting.secret }}
      name: {{ $setting.secret }}
      key: {{ default $name $setting.key }}
      {{- else }}
      name: {{ last . }}
      key: {{ $name }}
      {{- end }}
{{- end }}

{{/* The part of the Pod spec that all pods of the service share. Takes (list context serviceAccount). */}}
{{- define "leaderboard.pod" -}}
{{- $values := (first .).Values -}}
serviceAccountName: {{ last . }}
automountServiceAccountToken: false
# A Service named db would set DB_PORT.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* securityContext of every container: least privilege. */}}
{{- define "leaderboard.container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The migration's container. It does not use the ConfigMap, because a hook runs before the ConfigMap is created.
Takes (list context secretOfTheChart). */}}
{{- define "leaderboard.migrate" -}}
{{- $context := first . -}}
{{- $values := $context.Values -}}
- name: migrate
  image: {{ include "leaderboard.image" $context }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  args: [migrate]
  env:
    {{- range $name := list "DB_HOST" "DB_PORT" "DB_NAME" "DB_USER" "DB_SSLMODE" "DB_SSLROOTCERT" "DB_SSLCERT" "DB_SSLKEY" "DB_TIMEOUT_MS" }}
    - name: {{ $name }}
      value: {{ include "leaderboard.text" (index $values.settings $name) }}
    {{- end }}
    {{- include "leaderboard.secretEnv" (list $context "DB_PASSWORD" (last .)) | nindent 4 }}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "leaderboard.container" $context | nindent 4 }}
  resources:
    {{- toYaml $values.migration.resources | nindent 4 }}
  {{- with $values.extraVolumeMounts }}
  volumeMounts:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Egress rules for DNS. */}}
{{- define "leaderboard.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* The highest number of pods, and of PostgreSQL connections that they may open. */}}
{{- define "leaderboard.replicas" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}{{ else }}{{ .Values.replicas }}{{ end }}
{{- end }}

{{- define "leaderboard.connections" -}}
{{- mul (include "leaderboard.replicas" . | int) (int .Values.settings.WORKERS) (int .Values.settings.DB_POOL_SIZE) }}
{{- end }}

{{/* The grace period in seconds: preStop, the time that the process takes after SIGTERM (STOP_DELAY_MS +
REQUEST_TIMEOUT_MS + 2 s), and a margin of 5 s. */}}
{{- define "leaderboard.grace" -}}
{{- $stop := add (int .Values.settings.STOP_DELAY_MS) (int .Values.settings.REQUEST_TIMEOUT_MS) 999 }}
{{- add (int .Values.preStopSeconds) (div $stop 1000) 2 5 }}
{{- end }}

{{/* Fails for values that are each valid but contradict each other. */}}
{{- define "leaderboard.validate" -}}
{{- $secrets := .Values.secrets }}
{{- range $name, $setting := $secrets }}
{{- if and $setting.value $setting.secret }}
{{- fail (printf "secrets.%s: set value or secret, not both" $name) }}
{{- end }}
{{- if and $setting.key (not $setting.secret) }}
{{- fail (printf "secrets.%s.key: needs secrets.%s.secret, the name of the Secret with this key" $name $name) }}
{{- end }}
{{- end }}
{{- range $name := list "DB_PASSWORD" "REDIS_URL" }}
{{- if not (include "leaderboard.given" (index $secrets $name)) }}
{{- fail (printf "secrets.%s: must be set, by secret (the name of a Secret) or by value" $name) }}
{{- end }}
{{- end }}
{{- $jwtKey := include "leaderboard.given" $secrets.JWT_KEY }}
{{- $keys := or (include "leaderboard.given" $secrets.API_KEYS) $jwtKey }}
{{- if ne (empty .Values.settings.JWT_ALGORITHMS) (empty $jwtKey) }}
{{- fail "settings.JWT_ALGORITHMS and secrets.JWT_KEY: set both or neither" }}
{{- end }}
{{- if and (eq .Values.settings.READS "key") (not $keys) }}
{{- fail "settings.READS=key: needs secrets.API_KEYS or secrets.JWT_KEY; without them every read would be refused" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled $keys (not .Values.serviceMonitor.apiKey.secret) }}
{{- fail "serviceMonitor.apiKey: set secret and key; /metrics needs a key with the scope admin if API_KEYS or JWT_KEY is set" }}
{{- end }}
{{- if and .Values.serviceMonitor.apiKey.secret (not .Values.serviceMonitor.apiKey.key) }}
{{- fail "serviceMonitor.apiKey.key: must be set with serviceMonitor.apiKey.secret" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.hosts: needs at least one host name" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas: must not exceed autoscaling.maxReplicas" }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if or (hasKey $.Values.settings .name) (hasKey $secrets .name) }}
{{- fail (printf "extraEnv: %s is a setting; put it into settings or secrets" .name) }}
{{- end }}
{{- end }}
{{- if and .Values.preStopSeconds (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "preStopSeconds: needs Kubernetes 1.30 or newer, this is %s; raise settings.STOP_DELAY_MS instead" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- with $secrets.REDIS_URL.value }}
{{- if and $.Values.networkPolicy.enabled (not (hasPrefix "unix:" .)) }}
{{- $default := contains "+sentinel:" . | ternary "26379" "6379" }}
{{- $place := regexReplaceAll "/.*$" (regexReplaceAll "^[a-z+]+://(.*@)?" . "") "" }}
{{- range $address := splitList "," $place }}
{{- $port := regexFind ":[0-9]+$" $address | trimPrefix ":" | default $default }}
{{- if not (has $port (toStrings $.Values.networkPolicy.redisPorts)) }}
{{- fail (printf "networkPolicy.redisPorts: add %s, a port of secrets.REDIS_URL" $port) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.postgres.maxConnections }}
{{- /* Not for pods: 3 reserved for superusers, 1 for the migration, 1 for building the rank index. */}}
{{- $free := sub (int .) 5 }}
{{- if gt (include "leaderboard.connections" $ | int) (int $free) }}
{{- fail (printf "postgres.maxConnections=%d: %s pods x WORKERS=%d x DB_POOL_SIZE=%d may open %s connections, but only %d are free for them; allow fewer pods, or raise max_connections"
  (int .) (include "leaderboard.replicas" $) (int $.Values.settings.WORKERS) (int $.Values.settings.DB_POOL_SIZE) (include "leaderboard.connections" $) $free) }}
{{- end }}
{{- end }}
{{- if .Values.trial.enabled }}
{{- if ne .Values.migration.run "initContainer" }}
{{- fail "trial.enabled: needs migration.run=initContainer, because PostgreSQL starts with the API; see values-trial.yaml" }}
{{- end }}
{{- if not (and $secrets.DB_PASSWORD.value $secrets.REDIS_URL.value) }}
{{- fail "trial.enabled: needs secrets.DB_PASSWORD.value and secrets.REDIS_URL.value; see values-trial.yaml" }}
{{- end }}
{{- end }}
{{- end }}

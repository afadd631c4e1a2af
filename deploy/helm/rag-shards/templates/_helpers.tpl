{{/* Labels that select the pods of a component: (list $ "serving"). */}}
{{- define "rag-shards.selector" -}}
app.kubernetes.io/name: rag-shards
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of a component: (list $ "serving"). */}}
{{- define "rag-shards.labels" -}}
{{ include "rag-shards.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* Entries of `env` that two maps give; the second wins: (list $.Values.env $.Values.serving.env). */}}
{{- define "rag-shards.env" -}}
{{- range $name, $value := merge (dict) (index . 1) (index . 0) }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* One entry of `env` from an existing Secret: (list "RAG_REDIS_URL" $.Values.serving.redisSecret). */}}
{{- define "rag-shards.envFromSecret" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ (index . 1).name }}
      key: {{ (index . 1).key }}
{{- end }}

{{/* Security of every container. */}}
{{- define "rag-shards.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Security of every pod. 10001 is the user of the images. */}}
{{- define "rag-shards.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Spread the pods of a component over zones and nodes: (list $ "serving"). */}}
{{- define "rag-shards.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ $key }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "rag-shards.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* A probe that asks this worker over Redis whether it is alive. */}}
{{- define "rag-shards.ping" -}}
exec:
  command:
    - sh
    - -c
    - celery --broker "$RAG_BROKER_URL" inspect ping --destination "celery@$(hostname)" --timeout 10
timeoutSeconds: 20
{{- end }}

{{/* Names, labels, images. Templates of a component are given a dict of root and component (operator or gateway). */}}

{{- define "lorafleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The prefix of all object names. */}}
{{- define "lorafleet.prefix" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "lorafleet.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "lorafleet.componentName" -}}
{{ include "lorafleet.prefix" .root }}-{{ .component }}
{{- end }}

{{- define "lorafleet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "lorafleet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lorafleet
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lorafleet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lorafleet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The labels of gateways' pods as one line, for whoever lists them. */}}
{{- define "lorafleet.gatewaySelector" -}}
{{- include "lorafleet.selectorLabels" (dict "root" . "component" "gateway") | replace ": " "=" | replace "\n" "," -}}
{{- end }}

{{- define "lorafleet.componentLabels" -}}
{{ include "lorafleet.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "lorafleet.registry" -}}
{{- with .Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- end }}

{{- define "lorafleet.image" -}}
{{- $image := (index .root.Values .component).image -}}
{{- include "lorafleet.registry" .root }}{{ $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end }}

{{- define "lorafleet.engineImage" -}}
{{- default (printf "%slorafleet/inference:%s" (include "lorafleet.registry" .) .Chart.AppVersion) .Values.operator.engineImage -}}
{{- end }}

{{- define "lorafleet.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (include "lorafleet.componentName" .) $account.name -}}
{{- else -}}
{{- required (printf "%s.serviceAccount.name is needed when %s.serviceAccount.create is false" .component .component) $account.name -}}
{{- end -}}
{{- end }}

{{- define "lorafleet.keySecret" -}}
{{- default (printf "%s-operator-key" (include "lorafleet.prefix" .)) .Values.operator.keySecret -}}
{{- end }}

{{- define "lorafleet.keptNames" -}}
{{ include "lorafleet.prefix" . }}-operator-names
{{- end }}

{{- define "lorafleet.lease" -}}
{{ include "lorafleet.prefix" . }}-operator
{{- end }}

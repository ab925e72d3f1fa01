{{/* What the pods of operator and gateway have in common. */}}

{{- define "lorafleet.podMetadata" -}}
{{- $values := index .root.Values .component -}}
labels:
  {{- include "lorafleet.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: lorafleet
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Fields of the pod spec beside containers; noToken leaves the token of the ServiceAccount out, noKeys the file of keys, account names another one. */}}
{{- define "lorafleet.podSpec" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: {{ default (include "lorafleet.serviceAccountName" .) .account }}
automountServiceAccountToken: {{ not .noToken }}
enableServiceLinks: false
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "lorafleet.selectorLabels" $ | fromYaml)) }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (merge (deepCopy .) (hasKey . "labelSelector" | ternary dict $selector)) | nindent 4 }}
  {{- end }}
{{- end }}
{{- $keys := and (not .noKeys) ($values.keys).secretName }}
{{- if or $keys $values.extraVolumes }}
volumes:
  {{- with $keys }}
  - name: keys
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- with $values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Fields of the container that are the same for both; noKeys as above. */}}
{{- define "lorafleet.container" -}}
{{- $values := index .root.Values .component -}}
image: {{ include "lorafleet.image" . | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{- $keys := and (not .noKeys) ($values.keys).secretName }}
{{- if or $keys $values.extraVolumeMounts }}
volumeMounts:
  {{- if $keys }}
  # the whole folder: the kubelet renews no file that is mounted by itself
  - {name: keys, mountPath: /etc/lorafleet/keys, readOnly: true}
  {{- end }}
  {{- with $values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

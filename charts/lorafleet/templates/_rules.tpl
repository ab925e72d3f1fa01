{{/* What operator and gateway may do; operator/README.md and gateway/README.md have the same tables. */}}

{{- define "lorafleet.operatorRules" -}}
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments]
  verbs: [list, watch]
- apiGroups: [lorafleet.io]
  resources: [loraadapters]
  verbs: [list, watch, patch]
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments/status, loraadapters/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end }}

{{- define "lorafleet.gatewayRules" -}}
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments, loraadapters]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}

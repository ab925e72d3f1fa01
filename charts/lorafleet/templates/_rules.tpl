{{/* What operator and gateway may do; operator/README.md and gateway/README.md have the same tables. */}}

{{/* The two kinds. They are seen everywhere (rbac.kindsEverywhere): a namespace's Roles go together with the adapters in it. */}}
{{- define "lorafleet.operatorKinds" -}}
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments]
  verbs: [list, watch]
- apiGroups: [lorafleet.io]
  resources: [loraadapters]
  verbs: [list, watch, patch]
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments/status, loraadapters/status]
  verbs: [patch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get]
{{- end }}

{{- define "lorafleet.operatorRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
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
{{- if .Values.operator.inferencePools }}
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [create, patch, delete]
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferencemodelrewrites]
  verbs: [create, patch, delete]
{{- end }}
{{- if .Values.operator.leaderWorkerSets }}
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [create, patch]
{{- end }}
{{- end }}

{{- define "lorafleet.gatewayKinds" -}}
- apiGroups: [lorafleet.io]
  resources: [basemodeldeployments, loraadapters]
  verbs: [list, watch]
{{- end }}

{{- define "lorafleet.gatewayRules" -}}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}

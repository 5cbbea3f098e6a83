{{- define "lathe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "lathe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "lathe.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lathe.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lathe.operator" -}}
{{- printf "%s-operator" (include "lathe.fullname" . | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{- define "lathe.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lathe.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: write the account that the operator runs as, since serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lathe.selector" -}}
app.kubernetes.io/name: {{ include "lathe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "lathe.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lathe
{{ include "lathe.selector" . }}
{{- end -}}

{{- define "lathe.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* Rights in the namespaces that are watched. The operator must itself hold what it grants to Jobs: patching the
status of a ModelRevision. */ -}}
{{- define "lathe.rules" -}}
- apiGroups: [lathe.dev]
  resources: [optimizedmodels, optimizationrecipes]
  verbs: [get, list, watch]
- apiGroups: [lathe.dev]
  resources: [optimizedmodels/status]
  verbs: [patch]
- apiGroups: [lathe.dev]
  resources: [modelrevisions]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [lathe.dev]
  resources: [modelrevisions/status]
  verbs: [get, patch]
# To be the owner that blocks the deletion of children.
- apiGroups: [lathe.dev]
  resources: [optimizedmodels/finalizers, modelrevisions/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch]
- apiGroups: [serving.kserve.io]
  resources: [inferenceservices]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

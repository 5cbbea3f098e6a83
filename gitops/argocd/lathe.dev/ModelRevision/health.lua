-- Health of a ModelRevision for Argo CD. One that was superseded before it was done is no fault of anybody.
local status = obj.status
if status == nil then
  return {status = "Progressing", message = "Waiting for the operator"}
end
local message = status.summary or ""
if string.sub(message, 1, 13) == "Superseded by" then
  return {status = "Suspended", message = message}
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" and condition.status == "True" then
    return {status = "Healthy", message = message}
  end
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type ~= "Ready" and condition.status == "False" then
    return {status = "Degraded", message = message .. ": " .. (condition.message or condition.reason)}
  end
end
return {status = "Progressing", message = message}

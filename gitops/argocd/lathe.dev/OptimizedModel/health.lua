-- Health of an OptimizedModel for Argo CD.
-- While work goes on, the conditions that are not decided yet are Unknown: Progressing. A condition that Ready needs
-- and that is False asks somebody to act: Degraded. The message is the one line that `kubectl get om` shows.
local needed = {"InputsResolved", "RecipeValid", "Optimized", "GatesPassed", "Published", "RolledOut"}

local status = obj.status
if status == nil or status.conditions == nil then
  return {status = "Progressing", message = "Waiting for the operator"}
end
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the operator to see the newest spec"}
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local message = status.summary or ""
if found["Ready"] ~= nil and found["Ready"].status == "True" then
  return {status = "Healthy", message = message}
end
for _, kind in ipairs(needed) do
  local condition = found[kind]
  if condition ~= nil and condition.status == "False" then
    return {status = "Degraded", message = message .. ": " .. (condition.message or condition.reason)}
  end
end
if obj.spec ~= nil and obj.spec.suspend and found["Optimized"] ~= nil and found["Optimized"].reason == "Suspended" then
  return {status = "Suspended", message = message}
end
return {status = "Progressing", message = message}

-- Replaces the sizes of open holds whose work has ended by the real usage. KEYS 1-3 as in holds.lua
-- ARGV 1 run id, 2 time of the next check ms, then per hold: id, upgrades, tokens, embeddings ('' keeps the held amount)
-- A hold that has ended already stays as it is: counted usage may have been removed from it meanwhile.

if not is_warm() then
  return 'cold'
end
for at = 3, #ARGV, 4 do
  local id = ARGV[at]
  local hold = hold_of(id)
  if hold and not hold.ended then
    local after = {u = tonumber(ARGV[at + 1]), ended = true, counted = hold.counted}
    after.u = hold.counted and 0 or after.u
    after.t = tonumber(ARGV[at + 2]) or hold.t
    after.e = tonumber(ARGV[at + 3]) or hold.e
    if after.u + after.t + after.e == 0 then
      remove_hold(id, hold)
    else
      put_hold(id, hold, after, ARGV[2])
    end
  end
end
return 'settled'

-- Ended work: each open hold becomes what was really used. KEYS 1-3 as in holds.lua
-- ARGV 1 run id, 2 when to look at it again ms, then per hold: id, upgrades, tokens, embeddings ('' keeps the worst case)
-- A hold that has ended already is left alone: what is counted of it may have been taken off meanwhile.

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

-- Newer counters, and with them what is left of the holds whose events they include; one step.
-- KEYS 1-3 as in holds.lua
-- ARGV 1 run id, 2 version of the counters (-1: no counters, only what follows), 3-5 counters, 6 version of the plan,
--      7 plan, 8-10 limits, then per hold: id, what, upgrades, tokens, embeddings, due ms
--   what: left    ended, this much of it is not in the counters
--         drop    nobody owes anything for it
--         counted its end is in the counters, though its record was open: it holds no upgrade any more
--         keep    looked at; look again at the new time

if not is_warm() then
  -- What a Redis before this one has left. It admits nobody, and is made anew where it is asked for.
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  return 'cold'
end
local version = tonumber(ARGV[2])
if version >= 0 then
  if version < tonumber(redis.call('HGET', KEYS[1], 'v')) then
    return 'old'
  end
  redis.call('HSET', KEYS[1], 'v', ARGV[2], 'bu', ARGV[3], 'bt', ARGV[4], 'be', ARGV[5])
  if tonumber(ARGV[6]) > tonumber(redis.call('HGET', KEYS[1], 'pv')) then
    redis.call('HSET', KEYS[1], 'pv', ARGV[6], 'plan', ARGV[7], 'lu', ARGV[8], 'lt', ARGV[9], 'le', ARGV[10])
  end
end
for at = 11, #ARGV, 6 do
  local id, what, due = ARGV[at], ARGV[at + 1], ARGV[at + 5]
  local hold = hold_of(id)
  if hold then
    if what == 'drop' then
      remove_hold(id, hold)
    elseif what == 'left' then
      local after = {u = tonumber(ARGV[at + 2]), t = tonumber(ARGV[at + 3]), e = tonumber(ARGV[at + 4])}
      after.ended, after.counted = true, hold.counted
      if after.u + after.t + after.e == 0 then
        remove_hold(id, hold)
      else
        put_hold(id, hold, after, due)
      end
    elseif what == 'counted' then
      -- It may have ended since it was looked at: what else it used is asked for the next time.
      local after = {u = 0, t = hold.t, e = hold.e, ended = hold.ended, counted = true}
      if hold.ended and after.t + after.e == 0 then
        remove_hold(id, hold)
      else
        put_hold(id, hold, after, due)
      end
    elseif what == 'keep' then
      redis.call('ZADD', KEYS[3], due, id)
    end
  else
    redis.call('ZREM', KEYS[3], id)
  end
end
return 'confirmed'

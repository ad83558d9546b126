-- Installs newer counters and, in the same step, removes from the holds what these counters include.
-- KEYS 1-3 as in holds.lua
-- ARGV 1 run id, 2 version of the counters (-1: no counters, only what follows), 3-5 counters, 6 version of the plan,
--      7 plan, 8-10 limits, then per hold: id, kind of change, upgrades, tokens, embeddings, due ms
--   kind: left    the work has ended, and these amounts are not in the counters
--         drop    the hold is removed
--         counted the counters include its upgrade, though its record was open: it holds no upgrade any more
--         keep    only the time of the next check changes

if not is_warm() then
  -- A state of an earlier Redis process. It admits nothing; the next admission rebuilds it.
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
  local id, kind, due = ARGV[at], ARGV[at + 1], ARGV[at + 5]
  local hold = hold_of(id)
  if hold then
    if kind == 'drop' then
      remove_hold(id, hold)
    elseif kind == 'left' then
      local after = {u = tonumber(ARGV[at + 2]), t = tonumber(ARGV[at + 3]), e = tonumber(ARGV[at + 4])}
      after.ended, after.counted = true, hold.counted
      if after.u + after.t + after.e == 0 then
        remove_hold(id, hold)
      else
        put_hold(id, hold, after, due)
      end
    elseif kind == 'counted' then
      -- It may have ended since its record was read. The next refresh decides about its tokens and embeddings.
      local after = {u = 0, t = hold.t, e = hold.e, ended = hold.ended, counted = true}
      if hold.ended and after.t + after.e == 0 then
        remove_hold(id, hold)
      else
        put_hold(id, hold, after, due)
      end
    elseif kind == 'keep' then
      redis.call('ZADD', KEYS[3], due, id)
    end
  else
    redis.call('ZREM', KEYS[3], id)
  end
end
return 'confirmed'

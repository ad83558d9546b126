-- The state as of one moment. KEYS 1-3 as in holds.lua; ARGV 1 run id, 2 now ms
-- Answers {'warm', due ids, counters, limits, sums of holds (three each), plan, version}

if not is_warm() then
  return {'cold'}
end
local state = redis.call('HMGET', KEYS[1], 'bu', 'bt', 'be', 'lu', 'lt', 'le', 'hu', 'ht', 'he', 'plan', 'v')
return {'warm', due_ids(ARGV[2]), unpack(state)}

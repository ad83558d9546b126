-- Applies a change of plan. KEYS 1-3 as in holds.lua, 4 rebuild; ARGV 1 run id, 2 version of the plan, 3 plan, 4-6 limits

if not is_warm() then
  -- A rebuild under way may have read the old plan. Without its token it installs nothing and starts again.
  redis.call('DEL', KEYS[4])
  return 'cold'
end
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[1], 'pv')) then
  return 'old'
end
redis.call('HSET', KEYS[1], 'pv', ARGV[2], 'plan', ARGV[3], 'lu', ARGV[4], 'lt', ARGV[5], 'le', ARGV[6])
return 'set'

-- Installs a rebuilt state, unless Redis was emptied or restarted since the rebuild began, or another replica was faster.
-- KEYS 1-3 as in holds.lua, 4 rebuild
-- ARGV 1 run id now, 2 run id when the rebuild began, 3 its token, 4 version, 5-7 counters, 8 version of the plan,
--      9 plan, 10-12 limits, 13 life of all this s, then per hold: id, text, due ms

if is_warm() then
  return 'warm'
end
if ARGV[1] ~= ARGV[2] or redis.call('GET', KEYS[4]) ~= ARGV[3] then
  return 'lost'
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'v', ARGV[4], 'bu', ARGV[5], 'bt', ARGV[6], 'be', ARGV[7],
  'pv', ARGV[8], 'plan', ARGV[9], 'lu', ARGV[10], 'lt', ARGV[11], 'le', ARGV[12], 'hu', 0, 'ht', 0, 'he', 0)
redis.call('EXPIRE', KEYS[1], ARGV[13])
for at = 14, #ARGV, 3 do
  put_hold(ARGV[at], nil, hold_from(ARGV[at + 1]), ARGV[at + 2])
end
return 'installed'

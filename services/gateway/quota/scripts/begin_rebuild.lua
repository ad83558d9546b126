-- Begins a rebuild: sets the token that install checks, or returns the token of a rebuild that is under way.
-- KEYS 1-3 as in holds.lua, 4 rebuild; ARGV 1 run id, 2 a new token, 3 its life ms. Returns {run id, token or 'warm'}

if is_warm() then
  return {ARGV[1], 'warm'}
end
redis.call('SET', KEYS[4], ARGV[2], 'NX', 'PX', ARGV[3])
return {ARGV[1], redis.call('GET', KEYS[4])}

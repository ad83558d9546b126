-- For how long (ms, Redis's clock) this Redis process has been known without being emptied. KEYS 1 incarnation
-- ARGV 1 run id. Returns {run id, age}. When the key expires, the age starts at 0 again, which does no harm.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', now), 'NX', 'EX', 6048000)
return {ARGV[1], now - tonumber(redis.call('GET', KEYS[1]))}

-- How long (ms) this Redis is known, by its own clock. One that was emptied counts as new. KEYS 1 incarnation
-- ARGV 1 run id. Answers {run id, age}. After its life it counts as new, and is soon old enough again.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', now), 'NX', 'EX', 6048000)
return {ARGV[1], now - tonumber(redis.call('GET', KEYS[1]))}

-- Counts refused credentials of one client address. KEYS 1; ARGV 1 run id, 2 now ms, 3 window ms, 4 most,
--   5 a name for this one, or '' to ask only. Answers {how many, ms until the first of them leaves the window}

local now, window = tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - window))
local count = redis.call('ZCARD', KEYS[1])
if ARGV[5] ~= '' and count < tonumber(ARGV[4]) then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[5])
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', window))
  count = count + 1
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {count, oldest[2] and (tonumber(oldest[2]) + window - now) or 0}

-- Counts failed authentications of one client address. KEYS 1 failures of the address
-- ARGV 1 run id, 2 now ms (0: Redis's clock), 3 window ms, 4 most, 5 a unique name for this failure
-- Returns {1 if it is within the limit, ms until the oldest leaves the window}

local now, window = rate_clock(ARGV[2]), tonumber(ARGV[3])
keep_window(KEYS[1], now, window)
local allowed = redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[4])
if allowed then
  redis.call('ZADD', KEYS[1], whole(now), ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return {allowed and 1 or 0, frees_in(KEYS[1], now, window)}

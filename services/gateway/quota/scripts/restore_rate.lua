-- Restores a user's rate after a loss of Redis. KEYS 1 rate of the user
-- ARGV 1 run id, 2 window ms, then per upgrade: time ms, id

for at = 3, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('PEXPIRE', KEYS[1], whole(2 * tonumber(ARGV[2])))
return 'noted'

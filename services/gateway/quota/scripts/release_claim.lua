-- Frees an idempotency key, if it belongs to this upgrade. KEYS 1 claim; ARGV 1 run id, 2 upgrade id

local claim = redis.call('GET', KEYS[1])
if claim and string.sub(claim, 1, #ARGV[2] + 1) == ARGV[2] .. '|' then
  redis.call('DEL', KEYS[1])
end
return 'freed'

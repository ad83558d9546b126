-- Gives an idempotency key back to the request that has it by the records, when who asked in between has it or nobody.
-- KEYS 1 claim; ARGV 1 run id, 2 who asked, 3 the claim of who has it, 4 life of the claim ms

local claim = redis.call('GET', KEYS[1])
if not claim or string.sub(claim, 1, #ARGV[2] + 1) == ARGV[2] .. '|' then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 'restored'

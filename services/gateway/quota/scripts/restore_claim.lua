-- Gives an idempotency key back to its owner by the records, unless an upgrade other than the repeated one claimed it.
-- KEYS 1 claim; ARGV 1 run id, 2 id of the repeated upgrade, 3 the claim of the owner, 4 life of the claim ms

local claim = redis.call('GET', KEYS[1])
if not claim or string.sub(claim, 1, #ARGV[2] + 1) == ARGV[2] .. '|' then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 'restored'

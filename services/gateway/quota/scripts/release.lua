-- Returns everything that admit took for a hold that was not recorded. KEYS as in admit.lua; ARGV 1 run id, 2 hold id

local id = ARGV[2]
local hold = hold_of(id)
if hold then
  remove_hold(id, hold)
end
redis.call('ZREM', KEYS[4], id)
local claim = redis.call('GET', KEYS[5])
if claim and string.sub(claim, 1, #id + 1) == id .. '|' then
  redis.call('DEL', KEYS[5])
end
return 'released'

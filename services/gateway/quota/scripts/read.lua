-- Reads fields of the state. KEYS 1-3 as in holds.lua; ARGV 1 run id, 2 now ms, then names of fields
-- Returns {'cold'} or {'warm', due ids, the value of each field}

if not is_warm() then
  return {'cold'}
end
return {'warm', due_ids(ARGV[2]), unpack(redis.call('HMGET', KEYS[1], unpack(ARGV, 3)))}

-- Decides about one upgrade or document: idempotency, then the rate, then the three meters. Takes everything or nothing.
-- KEYS 1-3 as in holds.lua, 4 rate of the user, 5 claim of the idempotency key
-- ARGV 1 run id of Redis, 2 now ms, 3 hold id, 4 upgrades, 5 tokens, 6 embeddings, 7 due ms,
--      8 most in a window (0: no rate limit), 9 window ms, 10 hash of the body ('' without a key), 11 life of a claim ms,
--      12 now ms for the rate (0: Redis's clock)
-- Returns {verdict, accepted in the window, ms until the oldest of them leaves it, due ids, …}

local id = ARGV[3]
local most, window = tonumber(ARGV[8]), tonumber(ARGV[9])
local now = most > 0 and rate_clock(ARGV[12]) or 0

local function rate()
  if most == 0 then
    return 0, 0
  end
  keep_window(KEYS[4], now, window)
  return redis.call('ZCARD', KEYS[4]), frees_in(KEYS[4], now, window)
end

local accepted, frees = rate()

local function answer(verdict, due, ...)
  return {verdict, accepted, whole(frees), due, ...}
end

if ARGV[10] ~= '' then
  local claim = redis.call('GET', KEYS[5])
  if claim and string.sub(claim, 1, #id + 1) ~= id .. '|' then
    return answer('replay', {}, claim)
  end
end

if not is_warm() then
  return answer('cold', {})
end

local due = due_ids(ARGV[2])
if redis.call('HEXISTS', KEYS[2], id) == 1 then
  return answer('admitted', due)
end

if most > 0 and accepted >= most then
  return answer('rate_limited', due)
end

local state = redis.call('HMGET', KEYS[1], 'bu', 'bt', 'be', 'lu', 'lt', 'le', 'hu', 'ht', 'he')
for meter = 1, 3 do
  local used, limit, held = tonumber(state[meter]), tonumber(state[meter + 3]), tonumber(state[meter + 6])
  local need = tonumber(ARGV[3 + meter])
  if limit >= 0 and need > 0 and used + held + need > limit then
    return answer('quota_exceeded', due, meter, state[meter + 3], state[meter], state[meter + 6])
  end
end

local hold = {u = tonumber(ARGV[4]), t = tonumber(ARGV[5]), e = tonumber(ARGV[6]), ended = false, counted = false}
put_hold(id, nil, hold, ARGV[7])
if most > 0 then
  redis.call('ZADD', KEYS[4], whole(now), id)
  redis.call('PEXPIRE', KEYS[4], whole(window * 2))
  accepted, frees = accepted + 1, frees > 0 and frees or window
end
if ARGV[10] ~= '' then
  redis.call('SET', KEYS[5], id .. '|' .. ARGV[10], 'PX', ARGV[11])
end
return answer('admitted', due)

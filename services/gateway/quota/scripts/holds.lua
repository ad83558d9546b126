-- Functions for holds and rates; this file is put in front of every script.
-- KEYS[1] counters, limits and sums of holds; KEYS[2] holds by id; KEYS[3] hold ids by the time of their next check.
-- A hold is stored as "upgrades,tokens,embeddings,ended,counted"; shared/contracts/admission_state.py has the same format.
-- Only put_hold and remove_hold change holds, and they change the sums in the same step.

local function whole(number)
  return string.format('%.0f', number)
end

-- The time for rates: the given one, or Redis's for 0. Replicas do not use their own clocks: if two of them differed by
-- more than a window, each would remove the entries of the other.
local function rate_clock(given)
  if tonumber(given) > 0 then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Removes entries outside of the window. Those a whole window ahead were written before a clock was set back.
local function keep_window(rate, now, window)
  redis.call('ZREMRANGEBYSCORE', rate, '-inf', whole(now - window))
  redis.call('ZREMRANGEBYSCORE', rate, whole(now + window), '+inf')
end

-- Ms until the oldest entry leaves the window, at most the window; 0 without entries.
local function frees_in(rate, now, window)
  local oldest = redis.call('ZRANGE', rate, 0, 0, 'WITHSCORES')
  return oldest[2] and math.min(window, tonumber(oldest[2]) + window - now) or 0
end

local function hold_from(text)
  local u, t, e, ended, counted = string.match(text, '^(%d+),(%d+),(%d+),([01]),([01])$')
  return {u = tonumber(u), t = tonumber(t), e = tonumber(e), ended = ended == '1', counted = counted == '1'}
end

local function hold_of(id)
  local stored = redis.call('HGET', KEYS[2], id)
  return stored and hold_from(stored) or nil
end

local function add_to_sums(before, after)
  for field, meter in pairs({hu = 'u', ht = 't', he = 'e'}) do
    local change = (after and after[meter] or 0) - (before and before[meter] or 0)
    if change ~= 0 then
      redis.call('HINCRBY', KEYS[1], field, whole(change))
    end
  end
end

local function remove_hold(id, hold)
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  add_to_sums(hold, nil)
end

local function put_hold(id, before, after, due)
  local text = whole(after.u) .. ',' .. whole(after.t) .. ',' .. whole(after.e) .. ','
  redis.call('HSET', KEYS[2], id, text .. (after.ended and '1,' or '0,') .. (after.counted and '1' or '0'))
  redis.call('ZADD', KEYS[3], due, id)
  add_to_sums(before, after)
end

local function is_warm()
  return redis.call('HGET', KEYS[1], 'run') == ARGV[1]
end

local function due_ids(now)
  return redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)
end

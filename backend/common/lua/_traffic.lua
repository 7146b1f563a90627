-- _traffic: how many callers come, and how long a start takes: what the pool's target follows.
--
-- exchange.py puts this text between _shared and the operation. demand.py says the same, and what it is for;
-- a test holds the two together. Every step is O(1).

-- A caller came: one more in the rate, one more agent to replace, and perhaps more to replace than ever of late.
local function note_arrival()
  local known = redis.call('HMGET', DEMAND, 'at_ms', 'arrivals', 'replacing', 'peak', 'refills_per_second')
  local passed = math.max(0, now - (tonumber(known[1]) or now))
  local replaced = passed / 1000 * (tonumber(known[5]) or 1)
  local replacing = math.max(0, (tonumber(known[3]) or 0) - replaced) + 1
  redis.call('HSET', DEMAND, 'at_ms', now, 'replacing', replacing,
    'arrivals', (tonumber(known[2]) or 0) * 0.5 ^ (passed / LIMITS.rate_half_life) + 1,
    'peak', math.max(replacing, (tonumber(known[4]) or 0) * 0.5 ^ (passed / LIMITS.peak_half_life)))
  redis.call('PEXPIRE', DEMAND, LIMITS.demand_ttl)
end

-- An agent arrived this long after its slot was reserved. Eight starts are what a start is taken to last.
local function note_start(ms)
  local known = tonumber(redis.call('HGET', DEMAND, 'start_ms') or ms)
  redis.call('HSET', DEMAND, 'start_ms', known + (ms - known) / 8)
  redis.call('PEXPIRE', DEMAND, LIMITS.demand_ttl)
end

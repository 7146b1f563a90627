-- _traffic: how many callers come, and how long a start takes: what the pool's target follows.
--
-- exchange.py puts this text between _shared and the operation. demand.py says the same, and what it is for;
-- a test holds the two together. Every step is O(1).

-- How many of so many agents are still to be replaced after some ms: as many at a time as there are cores.
local function still_replacing(number, passed, cores, refill_ms)
  local all_started_after = math.max(0, number - cores) * refill_ms / cores
  if passed < all_started_after then return number - passed * cores / refill_ms end
  return math.min(number, cores) * math.exp((all_started_after - passed) / refill_ms)
end

-- A caller came: one more in the rate, one more agent to replace, and perhaps more to replace than ever of late.
local function note_arrival()
  local known = redis.call('HMGET', DEMAND, 'at_ms', 'arrivals', 'replacing', 'peak', 'cores', 'start_ms')
  local passed = math.max(0, now - (tonumber(known[1]) or now))
  local cores, refill_ms = tonumber(known[5]) or 1, (tonumber(known[6]) or LIMITS.start_unknown) + LIMITS.refill_look
  local replacing = still_replacing(tonumber(known[3]) or 0, passed, cores, refill_ms) + 1
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

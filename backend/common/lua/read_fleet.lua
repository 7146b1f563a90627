-- read_fleet: what /metrics shows of the fleet, all of one moment. O(hosts), whatever else is stored.
--
-- KEYS[1]  hosts    zset host -> when it was last seen
-- KEYS[2]  sweep    hash swept_at_ms
--
-- Returns {numbers, counts, host, host, ...}. Numbers: now; sessions waiting, open, live; agents warm, starting;
-- sessions unsettled; since when (ms) the head of the line waits, the oldest one is unsettled, nobody swept: 0 for
-- never. Counts: field, value, ... of fleet:counts. Host: id, seen_ms, slots taken, {field, value, ...} of its record.

local function oldest(key) return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) or 0 end

local fleet = {
  {now, redis.call('ZCARD', LINE), redis.call('ZCARD', OPEN), redis.call('SCARD', LIVE), redis.call('ZCARD', WARM),
    redis.call('SCARD', STARTING), redis.call('ZCARD', UNSETTLED),
    math.floor(oldest(LINE) / 1000), oldest(UNSETTLED), tonumber(redis.call('HGET', KEYS[2], 'swept_at_ms')) or 0},
  redis.call('HGETALL', COUNTS),
}
local hosts = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for place = 1, #hosts, 2 do
  local id = hosts[place]
  fleet[#fleet + 1] = {id, tonumber(hosts[place + 1]), redis.call('SCARD', host_key(id)),
    redis.call('HGETALL', host_record(id))}
end
return fleet

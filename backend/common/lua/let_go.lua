-- let_go: end warm agents that are more than are wanted: of the most loaded host the oldest, one after the other.
--
-- KEYS[1]  pool:ready
-- ARGV[1]  target       warm agents wanted in the fleet
-- ARGV[2]  most to let go in this call
--
-- Returns the agents' ids. One that was warm for a short time only stays: a target that trembles costs no forks.

local surplus = math.min(redis.call('ZCARD', KEYS[1]) - ARGV[1], tonumber(ARGV[2]))
local ids = {}
while #ids < surplus do
  local host_id = redis.call('ZRANGE', OFFERS, -1, -1)[1]
  local oldest = host_id and redis.call('ZRANGE', warm_key(host_id), 0, 0, 'WITHSCORES') or {}
  if not oldest[2] or now - oldest[2] < LIMITS.warm_least then break end
  let_go(oldest[1])
  ids[#ids + 1] = oldest[1]
end
return ids

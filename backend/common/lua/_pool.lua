-- _pool: which host gives the next agent, and which one starts the next.
--
-- exchange.py puts this text between _names and _shared. placement.py says the same of one host; a test
-- holds the two together.

local function rank(hosts, host_id, score)
  if score then redis.call('ZADD', hosts, score, host_id) else redis.call('ZREM', hosts, host_id) end
end

-- Give the host its place among those that claims and refills choose from: after every change of its agents.
-- O(log hosts), and from the sets themselves: no counter can go wrong.
local function weigh(host_id)
  local record = redis.call('HMGET', host_record(host_id), 'capacity', 'cores')
  local capacity, cores = tonumber(record[1]) or 0, tonumber(record[2]) or 0
  local slots, starting = redis.call('SCARD', host_key(host_id)), redis.call('SCARD', starting_key(host_id))
  local warm = redis.call('ZCARD', warm_key(host_id))
  rank(OFFERS, host_id, warm > 0 and (slots - starting - warm) / math.max(1, capacity))
  rank(PLACES, host_id, slots < capacity and starting < cores and capacity - slots)
end

-- Take an agent out of those that are warm or starting; one in a call is in neither.
local function leave_pool(agent_id)
  local record = redis.call('HMGET', agent_key(agent_id), 'state', 'host_id')
  if record[1] ~= 'warm' and record[1] ~= 'starting' then return end
  local host_id = record[2]
  redis.call('ZREM', WARM, agent_id)
  redis.call('SREM', STARTING, agent_id)
  redis.call('ZREM', warm_key(host_id), agent_id)
  redis.call('SREM', starting_key(host_id), agent_id)
  weigh(host_id)
end

-- The newest warm agent of the least loaded host. One that missed a heartbeat may be dead: it is passed over until
-- its next one. Where every host looks so, as after a freeze of Redis, the one last heard will do.
local function next_warm()
  for _ = 1, 20 do -- each pass over costs one heartbeat's work; a freeze must not make one claim pay for all
    local host_id = redis.call('ZRANGE', OFFERS, 0, 0)[1]
    if not host_id then break end
    local agent_id = redis.call('ZRANGE', warm_key(host_id), -1, -1)[1]
    local heard_at = agent_id and tonumber(redis.call('ZSCORE', WARM, agent_id) or 0) or 0
    if heard_at > now - LIMITS.lease / 2 then return agent_id end
    if agent_id then redis.call('ZREM', warm_key(host_id), agent_id) end
    weigh(host_id)
  end
  return redis.call('ZRANGE', WARM, -1, -1)[1]
end

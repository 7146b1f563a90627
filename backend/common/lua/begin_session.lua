-- begin_session: the caller is there and can hear the agent. Billed time starts, once; a failover's silence is over.
--
-- KEYS[1]  session:{id}
-- ARGV[1]  session id
-- ARGV[2]  agent id
-- ARGV[3]  generation
--
-- Returns {1, started_at_ms, ms left} for the call that started it, {0, started_at_ms, ms left} for later
-- ones of any agent that holds the session, and false when this agent does not (or not confirmed).

local record = redis.call('HMGET', KEYS[1], 'state', 'agent_id', 'generation', 'started_at_ms', 'longest_ms',
  'created_at_ms')
if record[2] ~= ARGV[2] or record[3] ~= ARGV[3] or record[1] == 'ended' then return false end
if get(agent_key(ARGV[2]), 'state') ~= 'busy' then return false end
if tonumber(record[4]) then
  end_silence(KEYS[1])
  return {0, tonumber(record[4]), math.max(0, record[4] + record[5] - now)}
end

redis.call('HSET', KEYS[1], 'state', 'live', 'started_at_ms', now)
redis.call('SADD', LIVE, ARGV[1])
observe_since('can_hear', record[6])
note_duration(KEYS[1])
due('limit', ARGV[1], now + record[5] + LIMITS.limit_margin)
return {1, now, tonumber(record[5])}

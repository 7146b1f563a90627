-- confirm_claim: the agent is in the session's room. Only after a 1 may it publish and speak.
--
-- KEYS[1]  agent:{id}
-- ARGV[1]  agent id
-- ARGV[2]  nonce
-- ARGV[3]  session id
-- ARGV[4]  generation
--
-- The session learns where its agent is. Returns 1, also when repeated; 0 when the session is no longer this agent's: leave and exit.

local record = redis.call('HMGET', KEYS[1], 'state', 'nonce', 'session_id', 'generation')
if record[2] ~= ARGV[2] or record[3] ~= ARGV[3] or record[4] ~= ARGV[4] then return 0 end
if record[1] == 'busy' then return 1 end
if record[1] ~= 'claimed' then return 0 end

local session = session_key(ARGV[3])
local process = redis.call('HMGET', KEYS[1], 'host_id', 'pid')
redis.call('HSET', session, 'host_id', process[1] or '', 'agent_pid', process[2] or '')
redis.call('SET', pid_key(ARGV[3]), process[2] or '', 'PX', LIMITS.record_ttl)
redis.call('HSET', KEYS[1], 'state', 'busy')
not_due('claim', ARGV[1])
local silent_since = get(session, 'silent_since_ms')
if silent_since ~= '' then
  redis.call('HINCRBY', session, 'silent_ms', now - silent_since)
  redis.call('HDEL', session, 'silent_since_ms')
end
if get(session, 'started_at_ms') ~= '' then redis.call('HSET', session, 'state', 'live') end
return 1

-- confirm_claim: the agent is in the session's room. Only after a 1 may it publish and speak.
--
-- KEYS[1]  agent:{id}
-- ARGV[1]  agent id
-- ARGV[2]  nonce
-- ARGV[3]  session id
-- ARGV[4]  generation
--
-- Returns 1, also when repeated; 0 when the session is no longer this agent's: leave and exit.
-- The session learns where its agent runs.

local record = redis.call('HMGET', KEYS[1], 'state', 'nonce', 'session_id', 'generation', 'host_id', 'pid')
if record[2] ~= ARGV[2] or record[3] ~= ARGV[3] or record[4] ~= ARGV[4] then return 0 end
if record[1] == 'busy' then return 1 end
if record[1] ~= 'claimed' then return 0 end

local session = session_key(ARGV[3])
redis.call('HSET', KEYS[1], 'state', 'busy')
not_due('claim', ARGV[1])
note_process(ARGV[3], record[5], record[6])
if ARGV[4] == '1' then observe_since('confirmed', get(session, 'created_at_ms')) end
if get(session, 'started_at_ms') ~= '' then
  redis.call('HSET', session, 'state', 'live')
  redis.call('SADD', LIVE, ARGV[3])
end
return 1

-- record_turn: keep one turn of the conversation, for a successor. Only whoever holds the session may.
--
-- KEYS[1]  session:{id}
-- ARGV[1]  session id
-- ARGV[2]  agent id
-- ARGV[3]  generation
-- ARGV[4]  the turn
-- ARGV[5]  most turns to keep
-- ARGV[6]  most bytes to keep: the oldest turns go first
--
-- Returns 1; 0 when the session has ended, which deleted its turns, or is no longer this agent's.

local record = redis.call('HMGET', KEYS[1], 'state', 'agent_id', 'generation')
if not record[1] or record[1] == 'ended' or record[2] ~= ARGV[2] or record[3] ~= ARGV[3] then return 0 end

local turns, bytes = KEYS[1] .. ':turns', redis.call('HINCRBY', KEYS[1], 'turns_bytes', #ARGV[4])
local kept = redis.call('RPUSH', turns, ARGV[4])
while kept > tonumber(ARGV[5]) or bytes > tonumber(ARGV[6]) do
  bytes = redis.call('HINCRBY', KEYS[1], 'turns_bytes', -#redis.call('LPOP', turns))
  kept = kept - 1
end
redis.call('PEXPIRE', turns, LIMITS.record_ttl)
return 1

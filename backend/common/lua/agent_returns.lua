-- agent_returns: an agent in a call tells a Redis that forgot (restarted empty, or older) about it.
--
-- KEYS[1]  agent:{id}
-- KEYS[2]  session:{id}
-- ARGV[1]  agent id
-- ARGV[2]  nonce
-- ARGV[3]  host id
-- ARGV[4]  session id
-- ARGV[5]  generation
-- ARGV[6..] the session's fields as the agent got them with its assignment (field, value, ...)
--
-- Returns 1: go on, Redis knows you again; 0: the session ended or is another agent's, exit.
-- What Redis knows wins, unless it is older than what the agent knows.

if get(KEYS[1], 'nonce') ~= '' and not is_known(ARGV[1], ARGV[2]) then return 0 end
local state = get(KEYS[1], 'state')
if state == 'stopping' or state == 'gone' then return 0 end

local session = redis.call('HMGET', KEYS[2], 'state', 'generation', 'agent_id')
local theirs, mine = tonumber(session[2] or 0), tonumber(ARGV[5])
local is_theirs = session[1] == 'ended' or theirs > mine
  or (theirs == mine and session[3] ~= '' and session[3] ~= ARGV[1])

-- Claimed for a second session by a Redis that thought it warm: that one arrives again.
local other = get(KEYS[1], 'session_id')
if other ~= '' and other ~= ARGV[4] and get(session_key(other), 'agent_id') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'session_id', '')
  not_due('claim', ARGV[1])
  arrive_again(other)
end
redis.call('SADD', host_key(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[2], 'host_id', ARGV[3])
redis.call('PEXPIRE', KEYS[1], LIMITS.record_ttl)
if is_theirs then
  redis.call('HSET', KEYS[1], 'session_id', '', 'generation', '')
  retire(ARGV[1])
  return 0
end

if not session[1] then redis.call('HSET', KEYS[2], unpack(ARGV, 6)) end
redis.call('HSET', KEYS[2], 'agent_id', ARGV[1], 'generation', ARGV[5],
  'state', get(KEYS[2], 'started_at_ms') ~= '' and 'live' or 'assigned')
redis.call('PEXPIRE', KEYS[2], get(KEYS[2], 'longest_ms') + LIMITS.unsettled_ttl)
redis.call('ZADD', OPEN, get(KEYS[2], 'created_at_ms'), ARGV[4])
redis.call('ZADD', ALL, get(KEYS[2], 'created_at_ms'), ARGV[4])
redis.call('SADD', user_key(get(KEYS[2], 'user_id')), ARGV[4])
if get(KEYS[2], 'start_key') ~= '' then
  remember_start(get(KEYS[2], 'start_key'), get(KEYS[2], 'start_body'), ARGV[4])
end
redis.call('ZREM', LINE, ARGV[4])
redis.call('ZREM', WARM, ARGV[1])
redis.call('SREM', STARTING, ARGV[1])
not_due('waiting', ARGV[4])
not_due('claim', ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'busy', 'session_id', ARGV[4], 'generation', ARGV[5])
due('agent', ARGV[1], now + LIMITS.lease)
local started_at = get(KEYS[2], 'started_at_ms')
local from = started_at ~= '' and tonumber(started_at) or get(KEYS[2], 'created_at_ms') + LIMITS.start
due('limit', ARGV[4], from + get(KEYS[2], 'longest_ms') + LIMITS.limit_margin)
return 1

-- agent_returns: an agent in a call tells a Redis that forgot (restarted empty, or older) about it.
--
-- KEYS[1]  agent:{id}
-- KEYS[2]  session:{id}
-- ARGV[1..3]  agent id, nonce, host id
-- ARGV[4..6]  session id, generation, pid
-- ARGV[7..]   the session's fields as the agent got them with its assignment (field, value, ...)
--
-- Returns 1: go on, Redis knows you again; 0: the session ended or is another agent's, exit.
-- What Redis knows wins, unless it is older than what the agent knows; what it lacks is filled in.

if get(KEYS[1], 'nonce') ~= '' and not is_known(ARGV[1], ARGV[2]) then return 0 end
local state = get(KEYS[1], 'state')
if state == 'stopping' or state == 'gone' then return 0 end

local session = redis.call('HMGET', KEYS[2], 'state', 'generation', 'agent_id')
local theirs, mine = tonumber(session[2] or 0), tonumber(ARGV[5])
local is_theirs = session[1] == 'ended' or theirs > mine
  or (theirs == mine and session[3] ~= '' and session[3] ~= ARGV[1])
local knows = {}
for place = 7, #ARGV, 2 do knows[ARGV[place]] = ARGV[place + 1] end
local is_lost = not session[1] and not (knows.user_id and knows.ticket and knows.created_at_ms and knows.longest_ms)

-- Claimed for a second session by a Redis that thought it warm: that one arrives again.
local other = get(KEYS[1], 'session_id')
if other ~= '' and other ~= ARGV[4] and get(session_key(other), 'agent_id') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'session_id', '')
  not_due('claim', ARGV[1])
  arrive_again(other)
end
redis.call('SADD', host_key(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[2], 'host_id', ARGV[3], 'pid', ARGV[6])
redis.call('PEXPIRE', KEYS[1], LIMITS.record_ttl)
weigh(ARGV[3])
if is_theirs or is_lost then
  redis.call('HSET', KEYS[1], 'session_id', '', 'generation', '')
  retire(ARGV[1])
  return 0
end

for field, value in pairs(knows) do redis.call('HSETNX', KEYS[2], field, value) end
local record = redis.call('HMGET', KEYS[2], 'created_at_ms', 'longest_ms', 'started_at_ms', 'start_key')
local began, longest = tonumber(record[3]), tonumber(record[2])
redis.call('HSET', KEYS[2], 'agent_id', ARGV[1], 'generation', ARGV[5], 'state', began and 'live' or 'assigned')
redis.call('PEXPIRE', KEYS[2], longest + LIMITS.unsettled_ttl)
note_process(ARGV[4], ARGV[3], ARGV[6])
end_silence(KEYS[2])
redis.call('ZADD', OPEN, record[1], ARGV[4])
redis.call('ZADD', ALL, record[1], ARGV[4])
if began then redis.call('SADD', LIVE, ARGV[4]) end
redis.call('SADD', user_key(get(KEYS[2], 'user_id')), ARGV[4])
if record[4] then remember_start(record[4], get(KEYS[2], 'start_body'), ARGV[4]) end
redis.call('ZREM', LINE, ARGV[4])
leave_pool(ARGV[1])
not_due('waiting', ARGV[4])
not_due('claim', ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'busy', 'session_id', ARGV[4], 'generation', ARGV[5])
due('agent', ARGV[1], now + LIMITS.lease)
due('limit', ARGV[4], (began or record[1] + LIMITS.start) + longest + LIMITS.limit_margin)
return 1

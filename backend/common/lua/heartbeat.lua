-- heartbeat: renew an agent's lease and tell it what Redis holds to be true of it.
--
-- KEYS[1]  agent:{id}
-- ARGV[1]  agent id
-- ARGV[2]  nonce
-- ARGV[3]  session id     the session it works for, '' while warm
-- ARGV[4]  generation     of that session, '' while warm
-- ARGV[5]  frames that passed the pipeline
-- ARGV[6]  usage          JSON, opaque to Lua
-- ARGV[7..]  stages of the start that it reached since the last one: stage, ms from the claim, ...
--
-- Returns {'keep', ms left to the session's deadline, or -1 while it has none}
--         {'assigned', session id, generation}  its bell was lost: read this as the assignment
--         {'stop'}                              stale, ended or replaced: leave the room and exit
--         {'unknown'}                           Redis lost it or knows otherwise: call agent_returns
--                                               (with a session) or agent_arrives (without)

local function answer(word, ...)
  count('heartbeats:' .. word)
  return {word, ...}
end

local record = redis.call('HMGET', KEYS[1], 'state', 'nonce', 'session_id', 'generation', 'host_id', 'warm_at_ms')
local state = record[1]
if not state or not record[2] then return answer('unknown') end
if record[2] ~= ARGV[2] or state == 'stopping' or state == 'gone' then return answer('stop') end

due('agent', ARGV[1], now + LIMITS.lease)
redis.call('PEXPIRE', KEYS[1], LIMITS.record_ttl)
if state == 'warm' and ARGV[3] == '' then
  local is_offered = redis.call('ZSCORE', WARM, ARGV[1]) -- not where its host drains
  redis.call('ZADD', WARM, 'XX', now, ARGV[1])
  if is_offered and redis.call('ZADD', warm_key(record[5]), 'NX', record[6], ARGV[1]) == 1 then weigh(record[5]) end
  return answer('keep', -1)
end
if ARGV[3] == '' then return answer('assigned', record[3], tonumber(record[4])) end
if record[3] ~= ARGV[3] or record[4] ~= ARGV[4] then return answer('unknown') end

local session = session_key(ARGV[3])
if redis.call('EXISTS', session) == 0 then return answer('unknown') end -- else a record without a TTL would be made
redis.call('PEXPIRE', inbox_key(ARGV[1]), LIMITS.record_ttl)
redis.call('HSET', KEYS[1], 'frames', ARGV[5])
redis.call('HSET', session, 'usage', ARGV[6])
redis.call('PEXPIRE', pid_key(ARGV[3]), LIMITS.record_ttl)
for place = 7, #ARGV, 2 do note_stage(session, ARGV[4], ARGV[place], ARGV[place + 1]) end
local times = redis.call('HMGET', session, 'started_at_ms', 'longest_ms')
if not tonumber(times[1]) then return answer('keep', -1) end
note_duration(session)
return answer('keep', math.max(0, times[1] + times[2] - now))

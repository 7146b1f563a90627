-- agent_arrives: an agent is ready; it takes the oldest waiting session or becomes warm.
--
-- KEYS[1]  agent:{id}      hash state, nonce, host_id, session_id, generation, room, room_token, room_until_ms
-- ARGV[1]  agent id
-- ARGV[2]  nonce           drawn by the launcher for each process, never reused
-- ARGV[3]  host id
-- ARGV[4]  own room        the room it has joined, '' when parked
-- ARGV[5]  room token      for ARGV[4]; a session that takes this room inherits it for failover
-- ARGV[6]  ms for which a caller can still be sent to the room; '' when parked
-- ARGV[7]  pid
--
-- Returns {'warm'}, {'assigned', session id, generation}, or {'stale'}: exit, another process
-- has this id or nobody waits for you any more. Repeating the call repeats the answer.

local record = redis.call('HMGET', KEYS[1], 'state', 'nonce', 'session_id', 'generation', 'reserved_at_ms')
local state, nonce = record[1], record[2]
if state and nonce and nonce ~= ARGV[2] then return {'stale'} end
if state == 'stopping' or state == 'gone' then return {'stale'} end
if state == 'claimed' or state == 'busy' then return {'assigned', record[3], tonumber(record[4])} end

if redis.call('SREM', STARTING, ARGV[1]) == 1 then
  observe_since('spawn', record[5])
  if record[5] then note_start(now - record[5]) end
end
redis.call('SREM', starting_key(ARGV[3]), ARGV[1])
redis.call('SADD', host_key(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'warm', 'nonce', ARGV[2], 'host_id', ARGV[3], 'session_id', '',
  'generation', '', 'pid', ARGV[7], 'warm_at_ms', now, 'room', ARGV[4], 'room_token', ARGV[5],
  'room_until_ms', ARGV[6] == '' and '' or now + ARGV[6])
redis.call('PEXPIRE', KEYS[1], LIMITS.record_ttl)
due('agent', ARGV[1], now + LIMITS.lease)

local oldest = redis.call('ZRANGE', LINE, 0, 0)[1]
if not oldest then
  redis.call('ZADD', WARM, now, ARGV[1])
  redis.call('ZADD', warm_key(ARGV[3]), now, ARGV[1])
  weigh(ARGV[3])
  return {'warm'}
end
assign(oldest, ARGV[1], 'line')
local session = redis.call('HMGET', session_key(oldest), 'generation', 'created_at_ms')
if session[1] == '1' then observe_since('wait', session[2]) end
return {'assigned', oldest, tonumber(session[1])}

-- session_arrives: admit a session; it takes a warm agent or stands in the waiting line.
--
-- KEYS[1]  session:{proposed id}   hash, made here unless a warm agent brings its own room
-- KEYS[2]  start:{scope}:{key}     hash body, session_id; the idempotency record. May be absent
-- ARGV[1]  proposed session id     used when the agent has no own room or there is no agent
-- ARGV[2]  user id
-- ARGV[3]  room token              for an agent to join room ARGV[1] with
-- ARGV[4]  most unended sessions of the fleet (capacity of the live hosts + allowed line)
-- ARGV[5]  most unended sessions of this user
-- ARGV[6]  longest session, ms
-- ARGV[7]  hash of the request body; needed with KEYS[2]
-- ARGV[8]  not after            ms of Redis' clock, or '': a frozen Redis runs what it was sent when it thaws
-- ARGV[9]  number of the arguments that follow and belong to the record
-- ARGV[10..] further fields of the record, then those of session:{id}:prompt (field, value, ...)
--
-- Returns {'new' | 'again', session id, state, agent id}, {'conflict'} (same key, other body) or
-- {'refused', 'late' | 'fleet' | 'user' | 'line_age'}. A refusal is not remembered: the retry may succeed.

if ARGV[8] ~= '' and now > tonumber(ARGV[8]) then return refuse('late') end
if KEYS[2] then
  local start = redis.call('HMGET', KEYS[2], 'body', 'session_id')
  if start[1] and start[1] ~= ARGV[7] then count('refused:conflict') return {'conflict'} end
  local state = start[2] and get(session_key(start[2]), 'state') or ''
  if state ~= '' then return {'again', start[2], state, get(session_key(start[2]), 'agent_id')} end
end

if redis.call('ZCARD', OPEN) >= tonumber(ARGV[4]) then return refuse('fleet') end
if redis.call('SCARD', user_key(ARGV[2])) >= tonumber(ARGV[5]) then return refuse('user') end
local oldest = redis.call('ZRANGE', LINE, 0, 0, 'WITHSCORES')
if oldest[2] and now_us - oldest[2] > LIMITS.line_age * 1000 then return refuse('line_age') end

-- Strictly rising, also when Redis' host sets its clock back: order is kept by this alone.
local last = redis.call('ZRANGE', LINE, -1, -1, 'WITHSCORES')[2]
local ticket = math.max(now_us, (tonumber(last) or 0) + 1)
note_arrival()
-- Warm agents and a waiting line never exist at once, so nobody is overtaken here.
local agent_id, id, token = take_warm(), ARGV[1], ARGV[3]
local room = agent_id and get(agent_key(agent_id), 'room') or ''
if room ~= '' then id, token = room, get(agent_key(agent_id), 'room_token') end
local session = session_key(id)
redis.call('HSET', session, 'generation', 1, 'ticket', ticket, 'user_id', ARGV[2],
  'room_token', token, 'longest_ms', ARGV[6], 'created_at_ms', now, 'silent_ms', 0)
local further = 10 + ARGV[9]
if further > 10 then redis.call('HSET', session, unpack(ARGV, 10, further - 1)) end
redis.call('PEXPIRE', session, ARGV[6] + LIMITS.unsettled_ttl)
if ARGV[further] then
  redis.call('HSET', session .. ':prompt', unpack(ARGV, further))
  redis.call('PEXPIRE', session .. ':prompt', ARGV[6] + LIMITS.unsettled_ttl)
end
redis.call('ZADD', OPEN, now, id)
redis.call('ZADD', ALL, now, id)
redis.call('SADD', user_key(ARGV[2]), id)
due('limit', id, now + LIMITS.start + ARGV[6] + LIMITS.limit_margin)
if agent_id then assign(id, agent_id, 'warm') else stand_in_line(id) end
count(agent_id and 'started:assigned' or 'started:waiting')
if KEYS[2] then
  remember_start(KEYS[2], ARGV[7], id)
  redis.call('HSET', session, 'start_key', KEYS[2], 'start_body', ARGV[7])
end
return {'new', id, get(session, 'state'), agent_id or ''}

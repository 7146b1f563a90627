-- _shared: the steps that more than one operation takes.
--
-- exchange.py puts this text, after _names and _numbers, in front of every operation.
-- Records met on the way (the agent that is claimed) cannot be known before the call, so
-- only the record an operation starts from is in KEYS; it is also what routes the call.

-- A stream, not a list: reading does not remove, so a reader whose connection broke reads on.
local function tell(agent_id, command, session_id, generation, text)
  local inbox = inbox_key(agent_id)
  redis.call('XADD', inbox, 'MAXLEN', 100, '*',
    'command', command, 'session_id', session_id, 'generation', generation, 'text', text or '')
  redis.call('PEXPIRE', inbox, LIMITS.record_ttl)
end

-- Hand an agent to a session. The agent may speak only after confirm_claim. How: warm, line or failover.
local function assign(session_id, agent_id, how)
  local session, generation = session_key(session_id), get(session_key(session_id), 'generation')
  redis.call('ZREM', LINE, session_id)
  leave_pool(agent_id)
  not_due('waiting', session_id)
  redis.call('HSET', session, 'state', 'assigned', 'agent_id', agent_id, 'assigned_at_ms', now)
  redis.call('HSET', agent_key(agent_id), 'state', 'claimed',
    'session_id', session_id, 'generation', generation)
  due('claim', agent_id, now + LIMITS.confirm)
  tell(agent_id, 'assign', session_id, generation)
  count('claims:' .. how)
end

-- Take an agent out of service. Its slot stays taken until it has exited or the kill ladder is over.
local function retire(agent_id)
  leave_pool(agent_id)
  not_due('agent', agent_id)
  not_due('claim', agent_id)
  redis.call('HDEL', agent_key(agent_id), 'room_token')
  redis.call('HSET', agent_key(agent_id), 'state', 'stopping')
  due('stop', agent_id, now + LIMITS.stop)
end

-- Free the slot of an agent that is no more. The record stays a while, so that late reports find it.
local function forget_agent(agent_id)
  local agent = agent_key(agent_id)
  local host_id = get(agent, 'host_id')
  redis.call('SREM', host_key(host_id), agent_id)
  weigh(host_id)
  redis.call('DEL', inbox_key(agent_id))
  redis.call('HSET', agent, 'state', 'gone')
  redis.call('PEXPIRE', agent, LIMITS.tombstone_ttl)
end

-- Tell a warm agent that nobody needs it.
local function let_go(agent_id)
  retire(agent_id)
  tell(agent_id, 'end', '', '')
end

-- The best warm agent whose own room, if it has one, lives long enough for a caller to come. It is assigned next.
local function take_warm()
  while true do
    local agent_id = next_warm()
    if not agent_id then return nil end
    local record = redis.call('HMGET', agent_key(agent_id), 'state', 'room_until_ms')
    if record[1] == 'warm' and (tonumber(record[2]) or math.huge) > now then return agent_id end
    if record[1] then let_go(agent_id) else redis.call('ZREM', WARM, agent_id) end
  end
end

-- Where the session's agent runs, for people and for tools outside.
local function note_process(session_id, host_id, pid)
  redis.call('HSET', session_key(session_id), 'host_id', host_id, 'agent_pid', pid)
  redis.call('SET', pid_key(session_id), pid, 'PX', LIMITS.record_ttl)
end

-- End a session. The one place that does; callers have checked that it is open. Over at: when the agent says that it
-- was over, by this clock (nil: now); what it could not tell while Redis was away is nobody's bill.
local function finish(session_id, reason, ended_by, over_at)
  local session = session_key(session_id)
  local agent_id, started_at = get(session, 'agent_id'), tonumber(get(session, 'started_at_ms'))
  local ended_at = now
  if started_at then -- never longer than it was granted, whoever was away when that was over
    ended_at = math.max(started_at, math.min(now, over_at or now, started_at + get(session, 'longest_ms')))
  end
  end_silence(session, ended_at)
  observe('talk', note_duration(session, ended_at) * 1000)
  count('ended:' .. reason)
  redis.call('HDEL', session, 'room_token')
  redis.call('HSET', session, 'state', 'ended', 'ended_at_ms', ended_at, 'end_reason', reason, 'ended_by', ended_by)
  redis.call('ZREM', LINE, session_id)
  redis.call('ZREM', OPEN, session_id)
  redis.call('SREM', LIVE, session_id)
  redis.call('ZADD', ENDED, now, session_id)
  redis.call('DEL', session .. ':prompt', session .. ':turns', pid_key(session_id))
  redis.call('SREM', user_key(get(session, 'user_id')), session_id)
  not_due('waiting', session_id)
  not_due('limit', session_id)
  if agent_id ~= '' then
    retire(agent_id)
    tell(agent_id, 'end', session_id, get(session, 'generation'), reason)
  end
  redis.call('ZADD', UNSETTLED, now, session_id)
  redis.call('PEXPIRE', session, LIMITS.unsettled_ttl)
end

-- Give a session its place in the line. A ticket is kept for life: whoever had an agent was
-- served before all who wait, so a session that lost its agent stands at the head by itself.
local function stand_in_line(session_id)
  local session = session_key(session_id)
  redis.call('HSET', session, 'state', 'waiting', 'agent_id', '')
  redis.call('ZADD', LINE, get(session, 'ticket'), session_id)
  -- Who never had an agent waits from the start on, however often one was lost before it could speak.
  local from = get(session, 'started_at_ms') ~= '' and now or get(session, 'created_at_ms')
  due('waiting', session_id, from + LIMITS.start)
end

-- Let a session that lost its agent arrive again. Too often in a short time ends it instead:
-- a session that kills its agents must not eat the pool. Silent from: when its agent was last heard of; nil: now.
local function arrive_again(session_id, silent_from)
  local session, lost_at = session_key(session_id), {now}
  for at in get(session, 'lost_at_ms'):gmatch('%d+') do
    if now - at <= LIMITS.failover_window then lost_at[#lost_at + 1] = at end
  end
  redis.call('HSET', session, 'lost_at_ms', table.concat(lost_at, ' '))
  local started_at = tonumber(get(session, 'started_at_ms'))
  if started_at then redis.call('HSETNX', session, 'silent_since_ms', math.max(started_at, silent_from or now)) end
  redis.call('SREM', LIVE, session_id)
  count('failovers')
  if #lost_at > LIMITS.failovers then
    redis.call('HSET', session, 'agent_id', '')
    return finish(session_id, 'agent_lost', 'platform')
  end
  redis.call('HINCRBY', session, 'generation', 1)
  local agent_id = take_warm()
  if agent_id then return assign(session_id, agent_id, 'failover') end
  stand_in_line(session_id)
end

-- Never for a shorter time than the session lives: a late retry must find it.
local function remember_start(key, body, session_id)
  redis.call('HSET', key, 'body', body, 'session_id', session_id)
  redis.call('PEXPIRE', key, get(session_key(session_id), 'longest_ms') + LIMITS.unsettled_ttl)
end

-- True if this very process (id and nonce) is the one the record speaks of.
local function is_known(agent_id, nonce) return get(agent_key(agent_id), 'nonce') == nonce end

-- end_session: end a session, exactly once, whatever state it is in.
--
-- KEYS[1]  session:{id}
-- ARGV[1]  session id
-- ARGV[2]  end reason (EndReason value)
-- ARGV[3]  who ended it: caller, client, agent, limit, platform
-- ARGV[4]  generation     of the agent that asks; '' when it is not an agent
-- ARGV[5]  when it was over, in ms of this clock as the agent reckons it; '' now. A frozen Redis hears it late
--
-- Returns {1 | 0, started_at_ms or 0, ended_at_ms, silent_ms, agent id or ''}: 1 for the one call that ended it,
-- 0 and the same figures for every later one; false when there is no such session or the agent
-- that asks is stale. The agent is told in the same step, in any state: it need not have begun.

local record = redis.call('HMGET', KEYS[1], 'state', 'generation')
if not record[1] then return false end
local is_first = record[1] ~= 'ended'
if is_first then
  if ARGV[4] ~= '' and ARGV[4] ~= record[2] then return false end
  finish(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5]))
end
local figures = redis.call('HMGET', KEYS[1], 'started_at_ms', 'ended_at_ms', 'silent_ms')
return {is_first and 1 or 0, tonumber(figures[1] or 0), tonumber(figures[2]), tonumber(figures[3] or 0),
  get(KEYS[1], 'agent_id')}

-- expire_leases: act on every deadline that has passed. O(passed), whatever else is stored.
--
-- KEYS[1]  sweep      hash swept_at_ms, quiet_until_ms, born_ms: another birth is another memory
-- ARGV[1]  most deadlines to handle in this call
--
-- Returns {number handled, then for each agent to kill: agent id, host id, nonce}. Call again at
-- once while the number equals ARGV[1]. Any number of sweepers may run.
--
-- After a gap between sweeps (Redis frozen or restarted, its clock stepped, all workers down) a
-- lapsed deadline proves nothing: nobody could renew it. Then nothing expires for one lease. Only
-- one such rest in two leases, or sweeps that are always late would never expire anything.

local sweep = redis.call('HMGET', KEYS[1], 'swept_at_ms', 'quiet_until_ms')
local swept_at, quiet_until = tonumber(sweep[1] or 0), tonumber(sweep[2] or 0)
local was_gap = math.abs(now - swept_at) > LIMITS.sweep_gap
if was_gap and math.abs(now - quiet_until) > LIMITS.lease then quiet_until = now + LIMITS.lease end
redis.call('HSET', KEYS[1], 'swept_at_ms', now, 'quiet_until_ms', quiet_until)
redis.call('HSETNX', KEYS[1], 'born_ms', now)
if now < quiet_until then return {0} end

local kill = {}
local function to_kill(agent_id)
  local record = redis.call('HMGET', agent_key(agent_id), 'host_id', 'nonce', 'state', 'session_id')
  kill[#kill + 1] = agent_id
  kill[#kill + 1] = record[1] or ''
  kill[#kill + 1] = record[2] or ''
  return record[3], record[4]
end

local act = {}
function act.agent(agent_id, at)
  local state, session_id = to_kill(agent_id)
  if state == 'starting' then count('spawns_failed:late') end
  retire(agent_id)
  local is_theirs = session_id and session_id ~= '' and get(session_key(session_id), 'agent_id') == agent_id
  if is_theirs then arrive_again(session_id, at - LIMITS.lease) end -- dead time is not billed
end
act.claim = act.agent
function act.waiting(session_id)
  local has_begun = get(session_key(session_id), 'started_at_ms') ~= ''
  finish(session_id, has_begun and 'agent_lost' or 'start_timeout', 'platform')
end
function act.limit(session_id) finish(session_id, 'time_limit', 'limit') end
function act.stop(agent_id) -- told to go, and no exit was reported: its slot comes back all the same
  to_kill(agent_id)
  forget_agent(agent_id)
end

local passed = redis.call('ZRANGE', DEADLINES, '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, member in ipairs(passed) do
  local kind, id = member:match('^(%a+):(.+)$')
  local at = tonumber(redis.call('ZSCORE', DEADLINES, member)) -- an earlier one may have changed it
  if at and at <= now then
    not_due(kind, id)
    count('lapsed:' .. kind)
    act[kind](id, at)
  end
end
return {#passed, unpack(kill)}

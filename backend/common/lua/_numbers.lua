-- _numbers: the figures of a session, and what is counted for the fleet (numbers.py names it).
--
-- exchange.py puts this text, after _names, in front of every operation. BOUNDS has the upper bounds of each
-- histogram's buckets, in ms, as one string. A count is one field of one hash: O(1).

local function count(field, by) redis.call('HINCRBY', COUNTS, field, by or 1) end

local function refuse(cause)
  count('refused:' .. cause)
  return {'refused', cause}
end

local function observe(name, ms)
  ms = math.max(0, math.floor(ms)) -- Redis' clock may have been set back
  local bucket = 'inf'
  for bound in BOUNDS[name]:gmatch('%d+') do
    if ms <= tonumber(bound) then
      bucket = bound
      break
    end
  end
  count(name .. ':' .. bucket)
  if ms > 0 then count(name .. ':sum', ms) end
end

-- Of what began at that time; nothing when nobody knows any more.
local function observe_since(name, at)
  if tonumber(at) then observe(name, now - at) end
end

-- What only an agent can time, once in a session: a successor's start is another matter.
local function note_stage(session, generation, stage, ms)
  local name = 'agent_' .. stage
  if generation ~= '1' or not BOUNDS[name] then return end
  if redis.call('HSETNX', session, name .. '_ms', ms) == 1 then observe(name, tonumber(ms)) end
end

-- What was talked until then (nil: now), under the names and in the units that billing from outside reads.
local function note_duration(session, at)
  local figures = redis.call('HMGET', session, 'started_at_ms', 'silent_ms')
  local started_at = tonumber(figures[1])
  local seconds = started_at and math.max(0, math.floor(((at or now) - started_at - (figures[2] or 0)) / 1000)) or 0
  if started_at then redis.call('HSET', session, 'conversationStartTime', math.floor(started_at / 1000)) end
  redis.call('HSET', session, 'conversationDuration', seconds, 'conversationDurationMinutes', math.ceil(seconds / 60))
  return seconds
end

-- The caller hears an agent again, or the call is over, at that time (nil: now): what passed since the last one
-- fell silent is not billed.
local function end_silence(session, at)
  local since = get(session, 'silent_since_ms')
  if since == '' then return end
  local ms = math.max(0, (at or now) - since)
  redis.call('HINCRBY', session, 'silent_ms', ms)
  redis.call('HDEL', session, 'silent_since_ms')
  observe('silence', ms)
end

-- livekit_event: take one webhook, once; rooms and participants are known by SID, never by name.
--
-- KEYS[1]  livekit:event:{id}     string; marks the event as taken
-- KEYS[2]  session:{room name}
-- ARGV[1]  session id             the room's name
-- ARGV[2]  event                  participant_joined, participant_left, room_finished
-- ARGV[3]  participant SID        '' for events of the room
-- ARGV[4]  room SID
-- ARGV[5]  when the room was made, ms of LiveKit's clock; 0 where it was not said
--
-- Returns 'again' for an event that was taken before, 'unknown' when no session has this room, 'ended' when
-- the event ended the session, else 'taken'. A SID that left stays left: events may come in any order.

local function answer(outcome)
  count('webhooks:' .. ARGV[2] .. ':' .. outcome)
  return outcome
end

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', LIMITS.event_ttl) then return answer('again') end
if redis.call('EXISTS', KEYS[2]) == 0 then return answer('unknown') end

-- The session's room is the newest one of its name: word of an earlier one may come late.
local known = redis.call('HMGET', KEYS[2], 'room_sid', 'room_made_ms')
local is_earlier = known[1] and known[1] ~= ARGV[4] and tonumber(ARGV[5]) <= tonumber(known[2])

local callers, is_joined = KEYS[2] .. ':callers', ARGV[2] == 'participant_joined'
if is_joined or ARGV[2] == 'participant_left' then
  if is_joined and redis.call('HSETNX', callers, ARGV[3], 'joined') == 1 and redis.call('HLEN', callers) == 1 then
    observe_since('caller_joined', get(KEYS[2], 'created_at_ms'))
  end
  if not is_joined then redis.call('HSET', callers, ARGV[3], 'left') end
  redis.call('PEXPIRE', callers, LIMITS.record_ttl)
  if not is_earlier then redis.call('HSET', KEYS[2], 'room_sid', ARGV[4], 'room_made_ms', ARGV[5]) end
end

local state = get(KEYS[2], 'state')
if ARGV[2] ~= 'room_finished' or state == 'ended' or is_earlier then return answer('taken') end
-- A session that has an agent lost its room under it. One that waits for an agent lost its caller.
if state ~= 'waiting' then
  finish(ARGV[1], 'room_lost', 'platform')
else
  finish(ARGV[1], redis.call('EXISTS', callers) == 1 and 'caller_left' or 'nobody_came', 'caller')
end
return answer('ended')

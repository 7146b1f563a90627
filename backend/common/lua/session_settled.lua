-- session_settled: an ended session is accounted for. It leaves the outbox; its record and start key stay a while.
--
-- KEYS[1]  session:{id}
-- ARGV[1]  session id
--
-- Returns 1 for the call that took it off the outbox, 0 for later ones.

if redis.call('ZREM', UNSETTLED, ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'settled_at_ms', now)
redis.call('PEXPIRE', KEYS[1], LIMITS.settled_ttl)
local start_key = get(KEYS[1], 'start_key')
if start_key ~= '' then redis.call('PEXPIRE', start_key, LIMITS.settled_ttl) end
return 1

-- host_reports: a launcher says that its host is there, and whether it takes more agents.
--
-- KEYS[1]  host:{id}       hash; gone a few reports after the last one
-- ARGV[1]  host id
-- ARGV[2]  1 when the host takes more agents, 0 while it drains
-- ARGV[3..]  fields of the record (field, value, ...), among them capacity and cores
--
-- Returns 1.

redis.call('HSET', KEYS[1], 'seen_ms', now, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], LIMITS.host_ttl)
weigh(ARGV[1])
if ARGV[2] == '1' then
  redis.call('ZADD', HOSTS, now, ARGV[1])
else
  redis.call('ZREM', HOSTS, ARGV[1])
  redis.call('ZREM', PLACES, ARGV[1])
end
return 1

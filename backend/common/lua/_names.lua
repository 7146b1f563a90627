-- _names: the clock and the key names; the table of all keys is keys.py.
--
-- exchange.py puts this text in front of every operation, after one line that defines
-- LIMITS (times in ms), BOUNDS (of histograms, in ms) and PREFIX ('' or, for Redis Cluster, one hash tag for all keys).

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000) -- Redis is the only clock; frozen while a script runs

local WARM = PREFIX .. 'pool:ready'         -- zset agent -> last heartbeat: every warm agent
local STARTING = PREFIX .. 'pool:starting'  -- set of agents that are forked or about to be
local OFFERS = PREFIX .. 'pool:offers'      -- zset host with warm agents -> its load: the lowest is claimed from
local PLACES = PREFIX .. 'pool:places'      -- zset host that may start an agent now -> free slots: the most starts
local DEMAND = PREFIX .. 'pool:demand'      -- hash: how many callers come, and how long a start takes
local HOSTS = PREFIX .. 'hosts'             -- zset host -> when its launcher was last heard
local LINE = PREFIX .. 'session:waiting'    -- zset session -> ticket: the lowest is served
local OPEN = PREFIX .. 'session:open'       -- zset session -> created: every session not ended
local DEADLINES = PREFIX .. 'deadlines'     -- zset "<kind>:<id>" -> ms: all that can expire
local UNSETTLED = PREFIX .. 'settle:due'    -- zset session -> ended: the outbox
local ALL = PREFIX .. 'session:all'         -- zset session -> created: the list, also of the ended ones
local ENDED = PREFIX .. 'session:ended'     -- zset session -> ended
local LIVE = PREFIX .. 'session:live'       -- set of the open sessions whose caller hears an agent
local COUNTS = PREFIX .. 'fleet:counts'     -- hash: what was counted, see _numbers.lua

local function session_key(id) return PREFIX .. 'session:' .. id end
local function agent_key(id) return PREFIX .. 'agent:' .. id end
local function inbox_key(id) return PREFIX .. 'agent:' .. id .. ':inbox' end
local function host_record(id) return PREFIX .. 'host:' .. id end
local function host_key(id) return PREFIX .. 'host:' .. id .. ':agents' end
local function starting_key(host_id) return PREFIX .. 'host:' .. host_id .. ':starting' end
local function warm_key(host_id) return PREFIX .. 'host:' .. host_id .. ':warm' end
local function user_key(id) return PREFIX .. 'user:' .. id .. ':sessions' end
local function pid_key(session_id) return PREFIX .. 'agent:' .. session_id .. ':pid' end

local function get(key, field) return redis.call('HGET', key, field) or '' end
local function due(kind, id, at) redis.call('ZADD', DEADLINES, at, kind .. ':' .. id) end
local function not_due(kind, id) redis.call('ZREM', DEADLINES, kind .. ':' .. id) end

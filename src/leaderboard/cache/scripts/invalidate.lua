#!lua flags=allow-oom
-- Marks the cache as invalid until a process catches it up from this state. The new token makes every catching up
-- fail that is under way.
-- KEYS: state, deltas
-- ARGV: new_token
-- `cache/scripts.py` makes locals of these names.
-- Returns 1, or 0 if there was no cache.
if redis.call('EXISTS', state) == 0 then
    return 0
end
local token = redis.call('HGET', state, 'token') or ''
redis.call('HSET', state, 'token', new_token, 'valid', 0)
-- A delta without changes keeps replicas usable. If it cannot be written, they are loaded again, which does no harm.
redis.pcall('RPUSHX', deltas, token .. new_token)
redis.pcall('LTRIM', deltas, -200, -1)
return 1

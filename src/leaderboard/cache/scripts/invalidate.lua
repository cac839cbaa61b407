#!lua flags=allow-oom
-- Puts the cache out of use until somebody has caught it up from here; the new token makes every catching up
-- that is under way fail. Returns 0 when there was no cache to put out of use.
-- KEYS state, moves; ARGV new token
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
local token = redis.call('HGET', KEYS[1], 'token') or ''
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'usable', 0)
-- A move that changes nobody, so that copies need not be loaded anew; only that would come of its failing.
redis.pcall('RPUSHX', KEYS[2], token .. ARGV[1])
redis.pcall('LTRIM', KEYS[2], -200, -1)
return 1

#!lua
-- Puts what was loaded in the place of the cache, not yet in use: only catching up from here makes it so,
-- because a write may have been acknowledged since the snapshot while there was no cache to wait for.
-- The claim is checked, or a slow rebuild would rewind a newer state.
-- KEYS scores, metadata, state, loading scores, loading metadata, claim, moves
-- ARGV nonce, count, token, epoch, snapshot, asof, floor, total of users
-- Returns 1; nil if the claim is no longer mine or not all of what was loaded is there.
local count = tonumber(ARGV[2])
if redis.call('GET', KEYS[6]) ~= ARGV[1]
    or redis.call('ZCARD', KEYS[4]) ~= count
    or redis.call('HLEN', KEYS[5]) ~= count then
    return false
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7])
if count > 0 then
    redis.call('RENAME', KEYS[4], KEYS[1])
    redis.call('RENAME', KEYS[5], KEYS[2])
    redis.call('PERSIST', KEYS[1])
    redis.call('PERSIST', KEYS[2])
end
redis.call('HSET', KEYS[3], 'token', ARGV[3], 'epoch', ARGV[4], 'snapshot', ARGV[5], 'asof', ARGV[6],
    'floor', ARGV[7], 'count', count, 'total', ARGV[8], 'usable', 0)
return 1

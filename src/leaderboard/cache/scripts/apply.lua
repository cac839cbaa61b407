#!lua
-- Moves the cache from the state with the expected token to a newer one. Compare and set: every other change of the
-- cache, and every invalidation, has given it another token. Everything is checked before the first write, because a
-- script that fails half-way keeps what it has written.
-- KEYS: scores, metadata, state, lease, deltas
-- ARGV: nonce, expected_token, new_token, epoch, snapshot, asof, total, keep, delta, deletions, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- `keep`: the most members to keep. `delta`: what this call does, for replicas, '' if that is too long. The rest:
-- `deletions` members to delete, then member, score and metadata of each user to set.
-- Returns the time in microseconds, the count and the floor of the new state; nil if the token is another one; -1 if
-- the keys do not agree with the state.
local first_row = REST + tonumber(deletions)
assert((#ARGV - first_row + 1) % 3 == 0, 'a row has three values')
for i = first_row, #ARGV, 3 do
    assert(#ARGV[i] == 10 and tonumber(ARGV[i + 1]), 'a member or a score is malformed')
end

local current = redis.call('HMGET', state, 'token', 'count', 'floor')
if current[1] ~= expected_token then
    return false
end
local stored_count, floor = tonumber(current[2]), current[3]
if not stored_count or not floor then
    return -1
end
if redis.call('ZCARD', scores) ~= stored_count or redis.call('HLEN', metadata) ~= stored_count then
    return -1
end

if redis.call('TYPE', deltas).ok ~= 'list' or delta == '' then
    redis.call('DEL', deltas)
end
for i = REST, first_row - 1 do
    redis.call('ZREM', scores, ARGV[i])
    redis.call('HDEL', metadata, ARGV[i])
end
for i = first_row, #ARGV, 3 do
    redis.call('ZADD', scores, ARGV[i + 1], ARGV[i])
    redis.call('HSET', metadata, ARGV[i], ARGV[i + 2])
end

keep = tonumber(keep)
local count = redis.call('ZCARD', scores)
if count > keep then
    for _, member in ipairs(redis.call('ZRANGE', scores, keep, -1)) do
        redis.call('HDEL', metadata, member)
    end
    redis.call('ZREMRANGEBYRANK', scores, keep, -1)
    local last = redis.call('ZRANGE', scores, -1, -1, 'WITHSCORES')
    floor = string.format('%d,%d', -tonumber(last[2]), tonumber(last[1]))
    count = keep
end
redis.call('HSET', state, 'token', new_token, 'epoch', epoch, 'snapshot', snapshot, 'asof', asof,
    'floor', floor, 'count', count, 'total', total, 'valid', 1)
if delta ~= '' then
    redis.call('RPUSH', deltas, expected_token .. new_token .. delta)
    redis.call('LTRIM', deltas, -200, -1)
end
-- pcall: a lease that is no string was written by another program, and must not fail a script that has written.
if redis.pcall('GET', lease) == nonce then
    redis.call('DEL', lease)
end
local time = redis.call('TIME')
return {time[1] * 1000000 + time[2], count, floor}

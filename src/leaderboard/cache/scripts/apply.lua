#!lua
-- Moves the cache from the state whose token it is given to a newer one. Compare and set: whoever else moved
-- it, or threw it out, renewed the token. Everything is checked before the first write, because a script that
-- fails half-way keeps what it has written.
-- KEYS scores, metadata, state, lease, moves; ARGV nonce of the lease, expected token, new token, epoch, snapshot,
--   asof, total of users, most members to keep, this move for those who have a copy ('': too long for that), number
--   of removals, members to remove…, then member, score, metadata…
-- Returns now in µs, count and floor of the new state; nil if the token is another one; -1 if the cache is not what
-- its state says.
local removals = tonumber(ARGV[10])
local first_change = 11 + removals
assert((#ARGV - first_change + 1) % 3 == 0, 'changes come in threes')
for i = first_change, #ARGV, 3 do
    assert(#ARGV[i] == 10 and tonumber(ARGV[i + 1]), 'a member or a score is malformed')
end

local state = redis.call('HMGET', KEYS[3], 'token', 'count', 'floor')
if state[1] ~= ARGV[2] then
    return false
end
local stored = tonumber(state[2])
if not stored or not state[3] then
    return -1
end
if redis.call('ZCARD', KEYS[1]) ~= stored or redis.call('HLEN', KEYS[2]) ~= stored then
    return -1
end

if redis.call('TYPE', KEYS[5]).ok ~= 'list' or ARGV[9] == '' then
    redis.call('DEL', KEYS[5])
end
for i = 11, first_change - 1 do
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[2], ARGV[i])
end
for i = first_change, #ARGV, 3 do
    redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
end

local floor = state[3]
local keep = tonumber(ARGV[8])
local count = redis.call('ZCARD', KEYS[1])
if count > keep then
    for _, member in ipairs(redis.call('ZRANGE', KEYS[1], keep, -1)) do
        redis.call('HDEL', KEYS[2], member)
    end
    redis.call('ZREMRANGEBYRANK', KEYS[1], keep, -1)
    local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
    floor = string.format('%d,%d', -tonumber(last[2]), tonumber(last[1]))
    count = keep
end
redis.call('HSET', KEYS[3], 'token', ARGV[3], 'epoch', ARGV[4], 'snapshot', ARGV[5], 'asof', ARGV[6],
    'floor', floor, 'count', count, 'total', ARGV[7], 'usable', 1)
if ARGV[9] ~= '' then
    redis.call('RPUSH', KEYS[5], ARGV[2] .. ARGV[3] .. ARGV[9])
    redis.call('LTRIM', KEYS[5], -200, -1)
end
-- pcall: a lease that is no string is not ours, and must not fail a script that has written.
if redis.pcall('GET', KEYS[4]) == ARGV[1] then
    redis.call('DEL', KEYS[4])
end
local time = redis.call('TIME')
return {time[1] * 1000000 + time[2], count, floor}

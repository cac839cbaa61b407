#!lua
-- Takes the claim that lets one process at a time rebuild.
-- KEYS claim; ARGV nonce, milliseconds, the longest that any process may claim, in milliseconds
-- Returns now in µs, or nil if another process is rebuilding.
-- Every claim is set to expire: one that does not, or lasts too long, is not of our making, and counts as free.
local left = redis.call('PTTL', KEYS[1])
if left == -1 or left > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[1])
end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return false
end
local time = redis.call('TIME')
return time[1] * 1000000 + time[2]

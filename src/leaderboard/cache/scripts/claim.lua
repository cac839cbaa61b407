#!lua
-- Takes the claim that lets one process at a time rebuild. KEYS claim; ARGV nonce, milliseconds.
-- Returns now in µs, or nil if somebody else is rebuilding.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return false
end
local time = redis.call('TIME')
return time[1] * 1000000 + time[2]

#!lua
-- Claims the rebuild for one process at a time.
-- KEYS: claim
-- ARGV: nonce, claim_ms, max_claim_ms
-- `cache/scripts.py` makes locals of these names.
-- Returns the time in microseconds, or nil if another process has the claim.
-- Every claim expires within max_claim_ms. One that does not was written by another program, and is overwritten.
local left = redis.call('PTTL', claim)
if left == -1 or left > tonumber(max_claim_ms) then
    redis.call('DEL', claim)
end
if not redis.call('SET', claim, nonce, 'NX', 'PX', claim_ms) then
    return false
end
local time = redis.call('TIME')
return time[1] * 1000000 + time[2]

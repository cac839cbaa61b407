#!lua
-- Loads a part of a rebuild beside the cache, and extends the claim by claim_ms.
-- KEYS: loading_scores, loading_metadata, claim
-- ARGV: nonce, claim_ms, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- The rest: member, score and metadata of each user.
-- Returns 1, or nil if another process has the claim.
if redis.call('GET', claim) ~= nonce then
    return false
end
for i = REST, #ARGV, 3 do
    redis.call('ZADD', loading_scores, ARGV[i + 1], ARGV[i])
    -- The metadata are by user id, the last ten bytes of the member.
    redis.call('HSET', loading_metadata, ARGV[i]:sub(-10), ARGV[i + 2])
end
-- What an abandoned rebuild has loaded expires.
redis.call('PEXPIRE', loading_scores, claim_ms)
redis.call('PEXPIRE', loading_metadata, claim_ms)
redis.call('PEXPIRE', claim, claim_ms)
return 1

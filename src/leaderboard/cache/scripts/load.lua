#!lua
-- Loads a part of a rebuild beside the cache in use, and extends the claim by as much again.
-- KEYS loading scores, loading metadata, claim; ARGV nonce, milliseconds, then member, score, metadata…
-- Returns 1, or nil if the claim is no longer mine.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
    return false
end
for i = 3, #ARGV, 3 do
    redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
end
-- What an abandoned rebuild loaded goes away by itself.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1

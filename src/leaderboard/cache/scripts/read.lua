#!lua flags=allow-oom
-- Answers a batch of questions from one state of the cache, and returns that state with the answers, so that
-- both are of one instant. Runs when memory is full; having no `no-writes` flag, it is refused by a replica
-- and by a demoted primary, which may be behind.
-- KEYS scores, metadata, state; ARGV greatest age in µs (-1: any, and usable or not), neighbours, questions:
--   t<n> the best n · u<member> one user · c<member> one user and its neighbours
-- Returns now, token, epoch, asof, total, then one answer a question: the rank of its first row, then the rows as
-- member, score, metadata; 0 if there is no such user; nil if the cache does not reach so deep.
-- With any doubt about the state the answers are left out.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[3], 'token', 'epoch', 'asof', 'usable', 'count', 'floor', 'total')
local count = tonumber(state[5] or '')
if not (state[1] and state[2] and tonumber(state[3] or '') and count and state[6] and tonumber(state[7] or '')) then
    return {now}
end
local everyone = state[6] == ''
local reply = {now, state[1], state[2], state[3], state[7]}

local max_age = tonumber(ARGV[1])
if max_age >= 0 then
    local age = now - tonumber(state[3])
    if state[4] ~= '1' or age < 0 or age > max_age then
        return reply
    end
end
if redis.call('ZCARD', KEYS[1]) ~= count or redis.call('HLEN', KEYS[2]) ~= count then
    return reply
end

-- Lua's unpack takes some 8,000 values at most.
local CHUNK = 4000

local function rows(first, last)
    local found = redis.call('ZRANGE', KEYS[1], first, last, 'WITHSCORES')
    local answer = {first + 1}
    for from = 1, #found, 2 * CHUNK do
        local members = {}
        for i = from, math.min(from + 2 * CHUNK - 1, #found), 2 do
            members[#members + 1] = found[i]
        end
        local metadata = redis.call('HMGET', KEYS[2], unpack(members))
        for i, member in ipairs(members) do
            if not metadata[i] then
                return nil
            end
            answer[#answer + 1] = member
            answer[#answer + 1] = found[from + 2 * i - 1]
            answer[#answer + 1] = metadata[i]
        end
    end
    return answer
end

local neighbours = tonumber(ARGV[2])
for i = 3, #ARGV do
    local kind, what = ARGV[i]:sub(1, 1), ARGV[i]:sub(2)
    local answer = false
    if kind == 't' then
        local n = tonumber(what)
        if everyone or n <= count then
            answer = rows(0, n - 1)
        end
    else
        local reach = kind == 'c' and neighbours or 0
        local rank = redis.call('ZRANK', KEYS[1], what)
        if rank then
            if everyone or rank + reach < count then
                answer = rows(math.max(0, rank - reach), rank + reach)
            end
        elseif everyone then
            answer = 0
        end
    end
    if answer == nil then
        -- The counts agree and the members do not: torn, whatever was read before this row as well.
        return {now, state[1], state[2], state[3], state[7]}
    end
    reply[#reply + 1] = answer
end
return reply

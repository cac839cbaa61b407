#!lua
-- Moves the cache from the state with the expected token to a newer one. Compare and set: every other change of the
-- cache, and every invalidation, has given it another token. Everything is checked before the first write, because a
-- script that fails half-way keeps what it has written.
-- USES: seasons
-- KEYS: scores, metadata, state, lease, deltas, seasons, pending
-- ARGV: nonce, expected_token, new_token, epoch, snapshot, asof, total, keep, delta, deletions, changes, idle_ms, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- `keep`: the most members to keep. `delta`: what this call does, for replicas, '' if that is too long. The rest: of the
-- board `default`, `deletions` members to delete, then member, score and metadata of `changes` users to set. Then, of each
-- other season that changes: its name, the load that it is from, what to do ('set' or 'drop' the cached season, 'admit' or
-- 'reject' the pending load), what is pending and the entry to make of it, how many more entries there are, the delta, the
-- bytes of a member before the id, how many ids to delete, how many users to set, then the ids, and member, score and
-- metadata of the users.
-- A season whose keys do not agree with its entry is dropped. One that was evicted, and a load that is not pending any
-- more, are left as they are: no season is admitted without a new token, so there is nothing else to change.
-- Returns the time in microseconds, the count and the floor of the new state, how many loads are pending, and name and
-- entry of each season that was to change, '' if it is not cached now; nil if the token is another one; -1 if the keys of
-- `default` do not agree with the state.
keep = tonumber(keep)
local first_row = REST + tonumber(deletions)
local after = first_row + 3 * tonumber(changes)
for i = first_row, after - 1, 3 do
    assert(#ARGV[i] == 10 and tonumber(ARGV[i + 1]) and ARGV[i + 2], 'a member or a score is malformed')
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

-- An entry of a season: load|version|count|total|floor|bytes of its deltas|the rest.
local ENTRY = '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|(.*)$'
local plans = {}
while after <= #ARGV do
    local name, load, action, waiting, entry = unpack(ARGV, after, after + 4)
    local plan = {
        name = name, load = load, action = action, added = tonumber(ARGV[after + 5]), delta = ARGV[after + 6],
        prefix = tonumber(ARGV[after + 7]), ids = after + 10,
    }
    plan.rows = plan.ids + tonumber(ARGV[after + 8])
    after = plan.rows + 3 * tonumber(ARGV[after + 9])
    for i = plan.rows, after - 1, 3 do
        assert(#ARGV[i] == plan.prefix + 10 and tonumber(ARGV[i + 1]) and ARGV[i + 2], 'a member or a score is malformed')
    end
    plan.last = after - 1
    local stored = redis.call('HGET', seasons, name)
    if action == 'admit' or action == 'reject' then
        if redis.call('HGET', pending, name) ~= waiting then
            plan.action = 'leave'
        elseif stored then
            plan.action = 'reject'
        end
        stored = entry
    elseif not stored or stored:match('^[^|]*') ~= load then
        plan.action = 'leave'
    end
    if plan.action == 'set' or plan.action == 'admit' then
        local _, version, count, present, lowest, bytes, rest = stored:match(ENTRY)
        plan.version, plan.count, plan.total, plan.floor = version, tonumber(count), tonumber(present), lowest
        plan.bytes, plan.rest = tonumber(bytes), rest
        if not is_whole(load, count) then
            plan.action = plan.action == 'admit' and 'reject' or 'drop'
        end
    end
    plans[#plans + 1] = plan
end
assert(after == #ARGV + 1, 'the arguments of a season are malformed')

local function trim(scores, metadata)
    for _, member in ipairs(redis.call('ZRANGE', scores, keep, -1)) do
        redis.call('HDEL', metadata, member:sub(-10))
    end
    redis.call('ZREMRANGEBYRANK', scores, keep, -1)
    return unpack(redis.call('ZRANGE', scores, -1, -1, 'WITHSCORES'))
end

if redis.call('TYPE', deltas).ok ~= 'list' or delta == '' then
    redis.call('DEL', deltas)
end
for i = REST, first_row - 1 do
    redis.call('ZREM', scores, ARGV[i])
    redis.call('HDEL', metadata, ARGV[i])
end
for i = first_row, first_row + 3 * tonumber(changes) - 1, 3 do
    redis.call('ZADD', scores, ARGV[i + 1], ARGV[i])
    redis.call('HSET', metadata, ARGV[i], ARGV[i + 2])
end
local count = redis.call('ZCARD', scores)
if count > keep then
    local last, score = trim(scores, metadata)
    floor = string.format('%d,%d', -tonumber(score), tonumber(last))
    count = keep
end

-- Adds a delta to those of a season and removes the oldest, so that they take a tenth of what the users take at most, and
-- 64 KiB. Returns the bytes that they take now.
local function add_delta(key, delta, bytes, users)
    local length = redis.pcall('RPUSH', key, delta)
    if type(length) ~= 'number' then  -- Another program has written the key.
        redis.call('DEL', key)
        return 0
    end
    if length == 1 then  -- The others are gone.
        bytes = 0
        redis.call('PEXPIRE', key, idle_ms)
    end
    bytes = bytes + #delta
    local most = math.min(65536, math.max(2048, 26 * users))
    while length > 0 and (bytes > most or length > 200) do
        -- Several at once: one for each that is added would be one more command in each call.
        for _, oldest in ipairs(redis.call('LPOP', key, math.ceil(length / 4))) do
            bytes = bytes - #oldest
            length = length - 1
        end
    end
    return bytes
end

local reply = {}
for _, plan in ipairs(plans) do
    local entry = ''
    local scores, metadata, deltas_key = keys_of(plan.load)
    if plan.action == 'drop' then
        redis.call('HDEL', seasons, plan.name)
        redis.call('UNLINK', scores, metadata, deltas_key)
    elseif plan.action == 'reject' then
        redis.call('HDEL', pending, plan.name)
        redis.call('UNLINK', scores, metadata)
    elseif plan.action ~= 'leave' then
        for i = plan.ids, plan.rows - 1 do
            local old = plan.prefix > 0 and redis.call('HGET', metadata, ARGV[i])
            redis.call('ZREM', scores, (old and old:sub(1, plan.prefix) or '') .. ARGV[i])
            redis.call('HDEL', metadata, ARGV[i])
        end
        for i = plan.rows, plan.last, 3 do
            local id = ARGV[i]:sub(-10)
            if plan.prefix > 0 then
                local old = redis.call('HGET', metadata, id)
                if old and old:sub(1, plan.prefix) ~= ARGV[i]:sub(1, plan.prefix) then
                    redis.call('ZREM', scores, old:sub(1, plan.prefix) .. id)
                end
            end
            redis.call('ZADD', scores, ARGV[i + 1], ARGV[i])
            redis.call('HSET', metadata, id, ARGV[i + 2])
        end
        local count = redis.call('ZCARD', scores)
        if count > keep then
            local last, score = trim(scores, metadata)
            plan.floor = string.format('%.0f', -tonumber(score)) .. ',' .. last
            count = keep
        end
        if plan.action == 'admit' then
            redis.call('HDEL', pending, plan.name)
        end
        if plan.delta == '' or plan.action == 'admit' then
            redis.call('DEL', deltas_key)
            plan.bytes = 0
        else
            plan.bytes = add_delta(deltas_key, plan.version .. new_token .. plan.delta, plan.bytes, count)
        end
        -- A key that was empty in between has lost its expiry.
        if plan.action == 'admit' or plan.count <= 1 or plan.ids < plan.rows then
            redis.call('PEXPIRE', scores, idle_ms)
            redis.call('PEXPIRE', metadata, idle_ms)
        end
        entry = string.format('%s|%s|%.0f|%.0f|%s|%.0f|%s',
            plan.load, new_token, count, plan.total + plan.added, plan.floor, plan.bytes, plan.rest)
        redis.call('HSET', seasons, plan.name, entry)
    end
    if plan.action ~= 'set' and plan.action ~= 'admit' then
        entry = redis.call('HGET', seasons, plan.name) or ''
    end
    reply[#reply + 1] = plan.name
    reply[#reply + 1] = entry
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
return {time[1] * 1000000 + time[2], count, floor, redis.call('HLEN', pending), reply}

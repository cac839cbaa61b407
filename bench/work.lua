-- The requests that wrk sends. The environment says which:
--   BENCH_WRITES  the share of requests that write
--   BENCH_TOP     the reads are of the best BENCH_TOP users
--   BENCH_IDS     … or of contexts of the users in this file, one id per line
--   BENCH_USERS   the number of users; without a file, contexts are of all of them, as are writes
--   BENCH_PLACES  all requests are about one of the places in this file: per line the beginning of the paths of a
--                 board, and the id of a user on it
--   BENCH_NAMES   the writes create users, whose names begin with this
--   BENCH_SEED    seed of the random numbers
local writes = tonumber(os.getenv("BENCH_WRITES"))
local top = os.getenv("BENCH_TOP")
local ids_file = os.getenv("BENCH_IDS")
local places_file = os.getenv("BENCH_PLACES")
local users = tonumber(os.getenv("BENCH_USERS"))
local names = os.getenv("BENCH_NAMES")

local random = math.random
local ids, boards, made = {}, {}, 0
local head

if ids_file then
    for id in io.lines(ids_file) do ids[#ids + 1] = id end
end

if places_file then
    for line in io.lines(places_file) do
        local board, id = line:match("^(%S+) (%d+)$")
        boards[#boards + 1], ids[#ids + 1] = board, id
    end
end

function init()
    math.randomseed(tonumber(os.getenv("BENCH_SEED")))
    head = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n"
end

-- Built here, because wrk.format takes longer than some contestants take to answer.
local function get(path)
    return "GET " .. path .. head .. "\r\n"
end

local function post(path, body)
    return "POST " .. path .. head .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

-- Scores like those of the users.
local function score()
    return string.format("%d", math.min(100 / (1 - random()), 2147483647))
end

-- Returns the beginning of the paths, and an id for a write and one for a context.
local function place()
    if places_file then
        local n = random(#ids)
        return boards[n], ids[n], ids[n]
    end
    return "", random(users), ids_file and ids[random(#ids)]
end

function request()
    local board, user, shown = place()
    if random() < writes then
        if names then
            made = made + 1
            return post("/users", '{"username":"' .. names .. made .. '","score":' .. score() .. "}")
        end
        return post(board .. "/users/" .. user .. "/score", '{"score":' .. score() .. "}")
    end
    if top then return get(board .. "/leaderboard/top/" .. top) end
    return get(board .. "/leaderboard/user/" .. (shown or user) .. "/context")
end

-- One line for programs, after the text of wrk.
function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"p999_ms":%f,"refused":%d,"broken":%d,"late":%d}\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
        e.status, e.connect + e.read + e.write, e.timeout
    ))
end

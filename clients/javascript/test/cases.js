/**
 * What the client is tested for, against a running service: by Node.js (node.test.js) and in a browser (page.html).
 *
 * The server in between serves this folder and forwards all calls. The header `x-fault` of a request tells it to do
 * something else with the answer: see tests/clients/site.py.
 */

import { Leaderboard, LeaderboardError } from "../leaderboard.js";

/** Forwards the call, and closes the connection instead of answering. */
const CUT = { forward: true, cut: true };
/** Forwards the call, and closes the connection after half of the answer. */
const HALF = { forward: true, half: true };
/** Forwards the call, and does not answer until the client closes the connection. */
const HANG = { forward: true, hang: true };
/** The same after half of the answer. */
const STALL = { forward: true, half: true, hang: true };
/** What a proxy answers that reaches no process. */
const BAD_GATEWAY = { status: 502, headers: { "content-type": "text/html" }, body: "<h1>Bad Gateway</h1>" };

/** A busy machine must not make a call fail. */
const PATIENT = { timeout: 60_000, attemptTimeout: 60_000 };

let names = 0;

export class Env {
  /** `url`: of the service, `key`: allows everything, `prefix`: makes names unique. */
  constructor(url, key, prefix) {
    this.url = url;
    this.key = key;
    this.prefix = prefix;
    this.lb = new Leaderboard(url, { ...PATIENT, key });
  }

  /** Returns a client, and the list of the requests that it sends. Its first attempts have these faults. */
  client(faults = [], options = {}) {
    const sent = [];
    const left = [...faults];
    const own = (url, init) => {
      const headers = new Headers(init.headers);
      sent.push({ url, method: init.method, headers, body: init.body });
      const fault = left.shift();
      if (fault) headers.set("x-fault", JSON.stringify(fault));
      return fetch(url, { ...init, headers });
    };
    const lb = new Leaderboard(this.url, { ...PATIENT, key: this.key, fetch: own, ...options });
    return { lb, sent };
  }

  name() {
    return `${this.prefix}-${++names}`;
  }

  async user(score = 0) {
    return (await this.lb.createUser({ username: this.name(), score })).userId;
  }

  async board(rules = {}) {
    const board = this.lb.board(this.name());
    await board.configure(rules);
    return board;
  }
}

export const cases = {
  async "a user is created, gets a score and is read"(env) {
    const { lb } = env;
    const username = `${env.name()} ü 😀`;
    const user = await lb.createUser({ username, imageUrl: "https://img.example.com/ada.png" });
    equal(user, { userId: user.userId, username, imageUrl: "https://img.example.com/ada.png", score: 0 });
    const { previousScore, score } = await lb.setScore(user.userId, 5);
    equal([previousScore, score], [0, 5]);
    const standing = await lb.standing(user.userId);
    equal(standing.score, 5);
    equal((await lb.context(user.userId)).user, standing);
    equal((await lb.friends([user.userId])).users, [standing]);
    equal((await lb.top(1)).users[0].rank, 1);
  },

  async "a board is made, read, changed and deleted"(env) {
    const board = env.lb.board(env.name());
    const made = await board.configure({ keeps: "sum", season: { every: "week", timezone: "Europe/Berlin" } });
    equal([made.name, made.keeps, made.season.every, made.currentSeason.number], [board.name, "sum", "week", 1]);
    equal(await board.get(), made);
    equal((await board.configure({ keeps: "sum", title: "Points" })).season, null);
    await board.delete();
    await rejects(board.get(), { code: "board_not_found", status: 404 });
    await rejects(board.delete(), { code: "board_not_found" });
  },

  async "entries of a board are changed and removed"(env) {
    const board = await env.board({ keeps: "sum" });
    const [one, two, three] = [await env.user(), await env.user(), await env.user()];
    const first = await board.increment(one, 5);
    equal([first.score, first.previousScore, first.improved, first.season, "rank" in first], [5, null, true, 1, false]);
    equal((await board.increment(two, 3, { rank: true })).rank, 2);
    const { results } = await board.setScores([
      { userId: one, increment: 4 },
      { userId: 2147483647, increment: 1 },
      { userId: three, increment: 1 },
    ]);
    equal(results.map((result) => result.error?.code ?? result.score), [9, "user_not_found", 1]);
    equal((await board.context(two)).below.map((user) => user.userId), [three]);
    await board.remove(one);
    equal((await board.top(10)).users.map((user) => user.userId), [two, three]);
    await rejects(board.standing(one), { code: "not_on_board" });
    await rejects(board.remove(one), { code: "not_on_board" });
    const last = await env.board();
    equal((await last.setScore(one, -7)).score, -7);
    equal(await list(env.lb.boardsOf(one)), ["default", last.name].sort());
  },

  async "a season is ended and read"(env) {
    const board = await env.board({ keeps: "sum" });
    const user = await env.user();
    await board.increment(user, 5);
    const ended = await board.endSeason(1);
    equal(await board.endSeason(1), ended);
    await board.increment(user, 1);
    equal((await board.top(1, { season: "previous" })).users[0].score, 5);
    equal((await board.standing(user, { season: 1 })).score, 5);
    equal((await board.context(user, { season: 1 })).total, 1);
    equal((await board.friends([user], { season: 1 })).users[0].score, 5);
    equal((await list(board.standings({ season: 1 })))[0].score, 5);
    equal((await board.standing(user)).score, 1);
    equal((await list(board.seasons({ limit: 1 }))).map((season) => season.number), [2, 1]);
    await rejects(board.top(1, { season: 9 }), { code: "season_not_found" });
    await rejects(env.lb.top(1, { season: 1 }), { code: "invalid_argument", status: 0, attempts: 0 });
  },

  async "a list is read page by page"(env) {
    const board = await env.board();
    const scores = [];
    for (let score = 7; score > 0; score--) scores.push({ userId: await env.user(), score });
    await board.setScores(scores);
    const standings = board.standings({ limit: 3 });
    equal((await list(standings)).map((standing) => standing.rank), [1, 2, 3, 4, 5, 6, 7]);
    equal((await list(standings.pages())).map((page) => [page.users.length, page.total]), [[3, 7], [3, 7], [1, 7]]);
    const { next } = await standings.page();
    equal((await board.standings({ limit: 3, after: next }).page()).users[0].rank, 4);
    const around = board.standings({ limit: 3, aroundRank: 3 });
    equal((await list(around)).map((standing) => standing.rank), [2, 3, 4, 5, 6, 7]);
    const of_default = env.lb.standings({ limit: 1000 });
    equal((await list(of_default)).length, (await of_default.page()).total);
  },

  async "boards and users are listed"(env) {
    const boards = [await env.board(), await env.board()];
    const listed = (await list(env.lb.boards({ limit: 1 }))).map((board) => board.name);
    equal(boards.every((board) => listed.includes(board.name)), true);
    const prefix = `${env.name()}&?/`;
    const users = [];
    for (const end of ["a", "b", "c"]) users.push(await env.lb.createUser({ username: prefix + end }));
    const found = await list(env.lb.usersWithPrefix(prefix, { limit: 2 }));
    equal(found, users.map((user) => ({ ...user, hidden: false })));
    equal(await env.lb.findUser(`${prefix}b`), found[1]);
  },

  async "a user is renamed, hidden and erased"(env) {
    const user = await env.user(5);
    const username = env.name();
    const hidden = await env.lb.updateUser(user, { username, hidden: true });
    equal([hidden.username, hidden.hidden], [username, true]);
    await rejects(env.lb.standing(user), { code: "user_not_found", status: 404, outcomeUnknown: false });
    equal((await env.lb.updateUser(user, { hidden: false })).hidden, false);
    equal(await env.lb.eraseUser(user), undefined);
    await rejects(env.lb.eraseUser(user), { code: "user_not_found" });
  },

  async "a user is named by the caller's own id"(env) {
    const { lb } = env;
    const externalId = `${env.name()} a/b,c?#@ü%2e`;
    const [user, username] = [`@${externalId}`, env.name()];
    const made = await lb.putUser(user, { username });
    equal([made.externalId, made.username, made.imageUrl], [externalId, username, null]);
    equal(await lb.putUser(user, { username }), made);
    equal((await lb.setScore(user, 5)).userId, made.userId);
    equal((await lb.standing(user)).externalId, externalId);
    equal((await lb.context(user)).user.userId, made.userId);
    const board = await env.board({ keeps: "sum" });
    await rejects(board.increment(`${user}2`, 1), { code: "user_not_found" });
    const second = await board.increment(`${user}2`, 4, { username: env.name(), rank: true });
    equal([second.externalId, second.score, second.rank], [`${externalId}2`, 4, 1]);
    const { results } = await board.setScores([
      { externalId, increment: 3 },
      { externalId: `${externalId}3`, username: env.name(), increment: 2 },
      { externalId: `${externalId}4`, increment: 1 },
    ]);
    equal(results.map((result) => result.error?.code ?? result.score), [3, 2, "user_not_found"]);
    equal(results[2].externalId, `${externalId}4`);
    const friends = await board.friends([user, second.userId, `${user}3`]);
    equal(friends.users.map(({ score }) => score), [4, 3, 2]);
    equal((await board.context(user)).user.rank, 2);
    equal(await list(lb.boardsOf(user)), [board.name, "default"].sort());
    await board.remove(user);
    const taken = lb.createUser({ username: env.name(), externalId });
    await rejects(taken, { code: "external_id_taken", status: 409 });
    const fixed = lb.updateUser(user, { externalId: `${externalId}5` });
    await rejects(fixed, { code: "external_id_fixed", status: 409 });
    equal((await lb.setScore(`${user}6`, 1, { username: env.name() })).externalId, `${externalId}6`);
    await lb.eraseUser(user);
    await rejects(lb.standing(user), { code: "user_not_found" });
  },

  async "a user who is created by a score that is not answered is created once"(env) {
    const board = await env.board({ keeps: "sum" });
    const user = `@${env.name()}`;
    const { score } = await env.client([CUT]).lb.board(board.name).increment(user, 5, { username: env.name() });
    equal([score, (await board.standing(user)).score], [5, 5]);
  },

  async "the process tells its state"({ lb }) {
    equal((await lb.status()).service, "leaderboard");
    equal(await lb.live(), { status: "alive" });
    equal((await lb.ready()).status, "ok");
    equal((await lb.metrics()).includes("leaderboard_postgres_up"), true);
    equal("/users" in (await lb.openapi()).paths, true);
  },

  async "a process that is not ready tells its state"(env) {
    const body = JSON.stringify({ status: "stopping" });
    const { lb, sent } = env.client([{ status: 503, headers: { "content-type": "application/json" }, body }]);
    equal([await lb.ready(), sent.length], [{ status: "stopping" }, 1]);
  },

  async "an error has the code, the status and the fields"(env) {
    const error = await rejects(env.lb.createUser({ username: "", score: "5" }), {
      code: "invalid_field",
      status: 422,
      attempts: 1,
      retryAfter: null,
      outcomeUnknown: false,
    });
    equal(error.errors.map(({ field }) => field), ["username", "score"]);
    equal(error.message.includes(error.detail), true);
    equal(error.name, "LeaderboardError");
    await rejects(env.lb.setScore(2147483647, 1), { code: "user_not_found", detail: "no user has the id 2147483647" });
    await rejects(new Leaderboard(env.url).createUser({ username: "x" }), { code: "unauthorized", status: 401 });
    await rejects(new Leaderboard(`${env.url}/nowhere`).top(1), { code: "not_found", status: 404 });
  },

  async "a name that would lead to another call is refused"(env) {
    for (const name of ["..", ".", "", undefined]) {
      await rejects((async () => env.lb.board(name))(), { code: "invalid_argument" });
      await rejects(env.lb.standing(name), { code: "invalid_argument" });
    }
    await rejects(env.lb.board("a/../../users").get(), { code: "not_found" });
    await rejects(env.lb.board("a?b#c").get(), { code: "invalid_parameter" });
  },

  async "the key may be a function, which is asked for each attempt"(env) {
    const keys = ["first", "second"];
    const { lb, sent } = env.client([CUT], { key: async () => keys.shift() });
    await rejects(lb.metrics(), { code: "unauthorized" });
    equal(sent.map(({ headers }) => headers.get("authorization")), ["Bearer first", "Bearer second"]);
  },

  async "the address may have a path and a slash at its end"(env) {
    for (const url of [`${env.url}/`, new URL(env.url), ...(globalThis.location ? ["/", "../.."] : [])]) {
      equal(await new Leaderboard(url).live(), { status: "alive" });
    }
    for (const wrong of ["http://user@127.0.0.1/", "http://127.0.0.1/?key=x", "http://127.0.0.1/#x"]) {
      await rejects((async () => new Leaderboard(wrong))(), { code: "invalid_argument" });
    }
  },

  async "whole numbers and decimals are exact"(env) {
    const user = await env.user();
    for (const score of [Number.MAX_SAFE_INTEGER, -Number.MAX_SAFE_INTEGER, 0]) {
      await env.lb.setScore(user, score);
      equal((await env.lb.standing(user)).score, score);
    }
    await rejects(env.lb.setScore(user, Number.MAX_SAFE_INTEGER + 1), { code: "invalid_field" });
    await rejects(env.lb.setScore(user, NaN), { code: "invalid_field" });
    const board = await env.board({ decimals: 6 });
    // The largest scores of such a board, and the smallest step.
    for (const score of [4503599627.370495, 4503599627.370494, -4503599627.370495, 0.000001, 0.1]) {
      equal((await board.setScore(user, score)).score, score);
      equal((await board.standing(user)).score, score);
    }
    const added = await board.increment(user, 0.2);
    equal(added.score, 0.3);
    const error = await rejects(board.increment(user, 0.1 + 0.2), { code: "invalid_field" });
    equal(error.errors[0].field, "increment");
  },

  async "an increment whose answer is lost is counted once"(env) {
    const user = await env.user();
    const board = await env.board({ keeps: "sum" });
    for (const fault of [CUT, HALF, HANG, STALL]) {
      const before = (await board.increment(user, 1)).score;
      // However slow the machine is, an attempt succeeds in the end.
      const limits = fault.hang ? { attemptTimeout: 300, retries: 100 } : {};
      const { lb, sent } = env.client([fault], limits);
      const { score, previousScore } = await lb.board(board.name).increment(user, 10);
      equal([score, previousScore, (await board.standing(user)).score], [before + 10, before, before + 10]);
      equal(sent.length >= 2, true);
      equal(new Set(sent.map(({ headers }) => headers.get("idempotency-key"))).size, 1);
    }
  },

  async "a user whose creation is not answered is created once"(env) {
    const username = env.name();
    const { lb } = env.client([CUT]);
    const { userId } = await lb.createUser({ username });
    equal((await env.lb.findUser(username)).userId, userId);
  },

  async "each call has a new key, unless it is given"(env) {
    const user = await env.user();
    const board = await env.board({ keeps: "sum" });
    const { lb, sent } = env.client();
    const own = lb.board(board.name);
    await own.increment(user, 1);
    await own.increment(user, 1);
    const idempotencyKey = env.name();
    equal((await own.increment(user, 1, { idempotencyKey })).score, 3);
    equal((await own.increment(user, 1, { idempotencyKey })).score, 3);
    await rejects(own.increment(user, 2, { idempotencyKey }), { code: "idempotency_key_reused", idempotencyKey });
    const keys = sent.map(({ headers }) => headers.get("idempotency-key"));
    equal(/^[0-9a-f]{32}$/.test(keys[0]) && keys[0] !== keys[1], true);
    equal(keys.slice(2), [idempotencyKey, idempotencyKey, idempotencyKey]);
    await own.standing(user);
    equal(sent.at(-1).headers.get("idempotency-key"), null);
  },

  async "what is removed but not answered is removed"(env) {
    const user = await env.user();
    const board = await env.board();
    await board.setScore(user, 1);
    await env.client([CUT]).lb.board(board.name).remove(user);
    await rejects(board.standing(user), { code: "not_on_board" });
    await env.client([CUT]).lb.eraseUser(user);
    await rejects(env.lb.standing(user), { code: "user_not_found" });
    await env.client([CUT]).lb.board(board.name).delete();
    await rejects(board.get(), { code: "board_not_found" });
  },

  async "a season whose end is not answered is ended once"(env) {
    const board = await env.board();
    const ended = await env.client([CUT]).lb.board(board.name).endSeason(1);
    equal([ended.number, (await board.get()).currentSeason.number], [1, 2]);
  },

  async "a call that is never answered can be finished with its key"(env) {
    const user = await env.user();
    const board = await env.board({ keeps: "sum" });
    const { lb, sent } = env.client([CUT, CUT], { retries: 1 });
    const error = await rejects(lb.board(board.name).increment(user, 10), {
      code: "network_error",
      status: 0,
      attempts: 2,
      outcomeUnknown: true,
    });
    equal(error.cause instanceof Error, true);
    const { idempotencyKey } = error;
    equal(idempotencyKey, sent[0].headers.get("idempotency-key"));
    equal((await board.increment(user, 10, { idempotencyKey })).score, 10);
  },

  async "a read that is not answered leaves nothing unknown"(env) {
    const { lb } = env.client([CUT], { retries: 0 });
    await rejects(lb.top(1), { code: "network_error", outcomeUnknown: false, idempotencyKey: null });
  },

  async "attempts have random pauses, which grow"(env) {
    const { lb, sent } = env.client(Array(9).fill(BAD_GATEWAY), { retries: 6 });
    const random = Math.random;
    Math.random = () => 0.5;
    try {
      const pauses = await pausesOf(() =>
        rejects(lb.top(1), { code: "unexpected_response", status: 502, attempts: 7, retryAfter: null }),
      );
      equal(pauses, [100, 200, 400, 800, 1600, 2500]);
    } finally {
      Math.random = random;
    }
    equal(sent.length, 7);
  },

  async "Retry-After is waited for"(env) {
    const headers = { "content-type": "application/problem+json", "retry-after": "7" };
    const body = JSON.stringify({ code: "rate_limited", status: 429, detail: "retry in 7 s" });
    const { lb } = env.client([{ status: 429, headers, body }]);
    const pauses = await pausesOf(async () => equal((await lb.live()).status, "alive"));
    equal([pauses.length, pauses[0] >= 7000 && pauses[0] <= 7200], [1, true]);
  },

  async "a Retry-After beyond the timeout ends the call at once"(env) {
    const headers = { "content-type": "application/problem+json", "retry-after": "60" };
    const body = JSON.stringify({ code: "idempotency_keys_full", status: 503, detail: "full" });
    const { lb } = env.client([{ status: 503, headers, body }]);
    const error = { code: "idempotency_keys_full", status: 503, attempts: 1, retryAfter: 60, outcomeUnknown: false };
    await rejects(lb.createUser({ username: env.name() }), error);
  },

  async "what cannot get better is sent once"(env) {
    const problem = { "content-type": "application/problem+json" };
    const internal = { status: 500, headers: problem, body: '{"code": "internal_error", "detail": "see the log"}' };
    const write = env.client([internal]);
    const error = { code: "internal_error", attempts: 1, outcomeUnknown: true };
    await rejects(write.lb.createUser({ username: env.name() }), error);
    const page = env.client([{ status: 200, headers: { "content-type": "text/html" }, body: "<h1>Log in</h1>" }]);
    await rejects(page.lb.top(1), { code: "unexpected_response", attempts: 1 });
    const moved = env.client([{ status: 307, headers: { location: "/livez" }, body: "" }]);
    const expected = { code: "unexpected_response", attempts: 1, outcomeUnknown: false };
    const redirected = await rejects(moved.lb.createUser({ username: env.name() }), expected);
    equal(redirected.detail.includes("redirects"), true);
  },

  async "items that were refused for a moment are sent again"(env) {
    const board = await env.board({ keeps: "sum" });
    const [one, two] = [await env.user(), await env.user()];
    const scores = [
      { userId: one, increment: 1 },
      { userId: two, increment: 2 },
    ];
    const refused = (userId) => ({ userId, error: { code: "overloaded", detail: "" } });
    const answer = (...results) => ({
      forward: true,
      status: 200,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ results }),
    });
    const { lb, sent } = env.client([answer({ userId: one, score: 1 }, refused(two))]);
    const { results } = await lb.board(board.name).setScores(scores);
    equal([results.map(({ score }) => score), sent.length], [[1, 2], 2]);
    equal((await list(board.standings())).map(({ score }) => score), [2, 1]);
    // What was done stays done, if a later answer refuses it or is none.
    const later = [answer({ userId: one, score: 2 }, refused(two)), answer(refused(one), refused(two)), CUT];
    const other = env.client(later, { retries: 2 });
    const partly = (await other.lb.board(board.name).setScores(scores)).results;
    equal([partly[0].score, partly[1].error.code, other.sent.length], [2, "overloaded", 3]);
  },

  async "a call is ended by its signal"(env) {
    const reason = new Error("the page was left");
    const never = env.client();
    await same(never.lb.top(1, { signal: AbortSignal.abort(reason) }), reason);
    const during = new AbortController();
    const key = async () => during.abort(reason);
    await same(env.client([], { key }).lb.top(1, { signal: during.signal }), reason);
    equal(never.sent.length, 0);

    const endless = { timeout: 1e9, attemptTimeout: 1e9 };
    const controller = new AbortController();
    const hanging = env.client([HANG], endless);
    const call = hanging.lb.top(1, { signal: controller.signal });
    // The request has been sent when `fetch` was called.
    while (hanging.sent.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    controller.abort(reason);
    await same(call, reason);
    equal(hanging.sent.length, 1);

    const pausing = new AbortController();
    const { lb } = env.client([{ ...BAD_GATEWAY, headers: { "retry-after": "99999" } }], endless);
    const onResponse = () => setTimeout(() => pausing.abort(reason));
    await same(lb.top(1, { signal: pausing.signal, onResponse }), reason);
  },

  async "a call that is not answered in time is ended"(env) {
    const { lb } = env.client([HANG], { timeout: 300 });
    await rejects(lb.top(1), { code: "timeout", status: 0 });
    const unlimited = { timeout: Infinity, attemptTimeout: Infinity };
    equal(await env.lb.live(unlimited), { status: "alive" });
  },

  async "the headers of an answer can be read"(env) {
    let status;
    await env.lb.live({ timeout: undefined, onResponse: (response) => (status = response.status) });
    equal(status, 200);
  },
};

async function list(items) {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}

/** Returns the pauses that `run` makes, in milliseconds; they are not waited for. */
async function pausesOf(run) {
  const pauses = [];
  const setTimeout = globalThis.setTimeout;
  globalThis.setTimeout = (done, ms, ...rest) => {
    // Longer ones are the time limits of attempts.
    const isPause = ms < 10_000;
    if (isPause) pauses.push(ms);
    return setTimeout(done, isPause ? 0 : ms, ...rest);
  };
  try {
    await run();
  } finally {
    globalThis.setTimeout = setTimeout;
  }
  return pauses;
}

function equal(actual, expected) {
  const [one, other] = [JSON.stringify(sorted(actual)), JSON.stringify(sorted(expected))];
  if (one !== other) throw new Error(`${one} is not ${other}`);
}

/** Returns the value with the members of its objects in order. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
}

/** Returns the LeaderboardError of a call. Throws unless there is one with these members. */
async function rejects(call, members) {
  const error = await call.then(
    (value) => new Error(`it was done: ${JSON.stringify(value)}`),
    (caught) => caught,
  );
  if (!(error instanceof LeaderboardError)) throw error;
  for (const [name, value] of Object.entries(members)) {
    if (value !== undefined) equal([name, error[name]], [name, value]);
  }
  return error;
}

async function same(call, reason) {
  const error = await call.then(
    () => new Error("it was done"),
    (caught) => caught,
  );
  if (error !== reason) throw error;
}

/**
 * A client of the Leaderboard service for browsers and Node.js. It needs `fetch` and nothing else.
 *
 * A call is sent again if it got no answer, or one that says to try again. That is safe for every call: those that
 * add something carry an Idempotency-Key, the same one each time; all others set or remove.
 */

const TIMEOUT_MS = 30_000;
const ATTEMPT_TIMEOUT_MS = 10_000;
const RETRIES = 4;
const FIRST_DELAY_MS = 200;
const LONGEST_DELAY_MS = 5_000;
/** A longer timer would fire at once. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

const TRY_AGAIN_STATUS = new Set([408, 429, 502, 503, 504]);
const TRY_AGAIN_CODES = new Set([
  ...["network_error", "timeout"],
  ...["idempotency_key_in_use", "overloaded", "unavailable", "outcome_unknown"],
]);
const UNKNOWN_OUTCOME = new Set(["network_error", "timeout", "outcome_unknown", "internal_error"]);

/**
 * Why a call failed.
 *
 * `code` is the API's, or one of this client: `network_error`, `timeout`, `unexpected_response` (it is not the API's),
 * `invalid_argument` (nothing was sent). `status` is 0 if there was no answer.
 */
export class LeaderboardError extends Error {
  constructor({ code, detail, status = 0, retryAfter = null, errors = [], request = "", cause }) {
    super(`${code}: ${detail}${request && ` (${request})`}`, cause === undefined ? undefined : { cause });
    this.name = "LeaderboardError";
    this.code = code;
    this.detail = detail;
    this.status = status;
    /** Seconds, or null. */
    this.retryAfter = retryAfter;
    /** What is wrong with each field: `{field, message}`. */
    this.errors = errors;
    /** The key of a write that may be sent again, or null. */
    this.idempotencyKey = null;
    /** How many times the call was sent. */
    this.attempts = 0;
    /** Whether a write may have been done all the same. */
    this.outcomeUnknown = false;
  }
}

/** The reads that all boards have. */
class BoardReads {
  #send;
  #path;

  constructor(send, path) {
    this.#send = send;
    this.#path = path;
  }

  async top(n, options) {
    return this.#read(`/leaderboard/top/${segment(n)}`, options);
  }

  async standing(user, options) {
    return this.#read(`/users/${segment(user)}`, options);
  }

  async context(user, options) {
    return this.#read(`/leaderboard/user/${segment(user)}/context`, options);
  }

  async friends(users, { season, ...options } = {}) {
    // In this list, a comma of an external id is written twice.
    const list = Array.from(users, (user) => String(user).replaceAll(",", ",,")).join(",");
    const query = { users: list, ...this.#season(season) };
    return this.#send({ path: `${this.#path}/leaderboard`, query }, options);
  }

  standings({ after, aroundRank, limit, season, ...options } = {}) {
    const query = { after, around_rank: aroundRank, limit, ...this.#season(season) };
    const keys = { items: "users", cursor: "after" };
    return new List(this.#send, `${this.#path}/leaderboard`, query, keys, options);
  }

  #read(path, { season, ...options } = {}) {
    return this.#send({ path: this.#path + path, query: this.#season(season) }, options);
  }

  #season(season) {
    if (season !== undefined && this.#path === "") {
      throw invalidArgument('the board default has no seasons; use board("NAME")');
    }
    return { season };
  }
}

/** The calls of the service. Its own reads and `setScore` are about the board `default`. */
export class Leaderboard extends BoardReads {
  #send;

  constructor(url, options = {}) {
    const transport = new Transport(url, options);
    const send = (request, own) => transport.send(request, own);
    super(send, "");
    this.#send = send;
  }

  /** Returns the calls about a board. Sends nothing. */
  board(name) {
    return new Board(this.#send, name);
  }

  async setScore(user, score, { username, ...options } = {}) {
    const path = `/users/${segment(user)}/score`;
    return this.#send({ method: "POST", path, body: { score, username }, once: true }, options);
  }

  async createUser(user, options) {
    return this.#send({ method: "POST", path: "/users", body: user, once: true }, options);
  }

  /** Creates the user of an external id, or sets its name and image. `user` is "@" and the external id. */
  async putUser(user, values, options) {
    return this.#send({ method: "PUT", path: `/users/${segment(user)}`, body: values }, options);
  }

  async updateUser(user, changes, options) {
    return this.#send({ method: "PATCH", path: `/users/${segment(user)}`, body: changes }, options);
  }

  async eraseUser(user, options) {
    const done = ["user_not_found"];
    await this.#send({ method: "DELETE", path: `/users/${segment(user)}`, done }, options);
  }

  async findUser(username, options) {
    return this.#send({ path: "/users", query: { username } }, options);
  }

  usersWithPrefix(prefix, { after, limit, ...options } = {}) {
    return new List(this.#send, "/users", { prefix, after, limit }, { items: "users", cursor: "after" }, options);
  }

  boardsOf(user, { after, limit, ...options } = {}) {
    const path = `/users/${segment(user)}/boards`;
    return new List(this.#send, path, { after, limit }, { items: "boards", cursor: "after" }, options);
  }

  boards({ after, limit, ...options } = {}) {
    return new List(this.#send, "/boards", { after, limit }, { items: "boards", cursor: "after" }, options);
  }

  async status(options) {
    return this.#send({ path: "/" }, options);
  }

  async live(options) {
    return this.#send({ path: "/livez" }, options);
  }

  /** Returns the status also if the process is not ready. */
  async ready(options) {
    return this.#send({ path: "/readyz", answers: [503] }, options);
  }

  async metrics(options) {
    return this.#send({ path: "/metrics", text: true }, options);
  }

  async openapi(options) {
    return this.#send({ path: "/openapi.json" }, options);
  }
}

/** The calls about one board. */
class Board extends BoardReads {
  #send;
  #path;

  constructor(send, name) {
    const path = `/boards/${segment(name)}`;
    super(send, path);
    this.name = name;
    this.#send = send;
    this.#path = path;
  }

  setScore(user, score, options) {
    return this.#change(user, { score }, options);
  }

  increment(user, by, options) {
    return this.#change(user, { increment: by }, options);
  }

  /** Changes up to 1,000 entries. Items that were refused for a moment only are sent again. */
  async setScores(scores, options) {
    const request = { method: "POST", path: `${this.#path}/scores`, body: { scores }, once: true };
    let results = null;
    request.again = (answer) => {
      // What was done is done, also if a later answer cannot say so.
      results = answer.results.map((result, at) => (results?.[at] && !results[at].error ? results[at] : result));
      return results.some((result) => TRY_AGAIN_CODES.has(result.error?.code));
    };
    try {
      await this.#send(request, options);
    } catch (error) {
      if (results === null || !(error instanceof LeaderboardError)) throw error;
    }
    return { results };
  }

  async remove(user, options) {
    const done = ["not_on_board"];
    await this.#send({ method: "DELETE", path: `${this.#path}/users/${segment(user)}`, done }, options);
  }

  async get(options) {
    return this.#send({ path: this.#path }, options);
  }

  /** Creates the board, or changes its rules. A rule that is missing gets its default. */
  async configure(rules, options) {
    return this.#send({ method: "PUT", path: this.#path, body: rules }, options);
  }

  async delete(options) {
    await this.#send({ method: "DELETE", path: this.#path, done: ["board_not_found"] }, options);
  }

  seasons({ before, limit, ...options } = {}) {
    const keys = { items: "seasons", cursor: "before" };
    return new List(this.#send, `${this.#path}/seasons`, { before, limit }, keys, options);
  }

  async endSeason(number, options) {
    return this.#send({ method: "POST", path: `${this.#path}/seasons`, body: { season: number } }, options);
  }

  async #change(user, change, { rank, username, ...options } = {}) {
    const path = `${this.#path}/users/${segment(user)}/score`;
    const body = { ...change, username };
    return this.#send({ method: "POST", path, query: { rank }, body, once: true }, options);
  }
}

/** A list that is read page by page. `for await` yields its items. */
class List {
  #read;
  #query;
  #keys;

  constructor(send, path, query, keys, options) {
    this.#read = (own) => send({ path, query: own }, options);
    this.#query = query;
    this.#keys = keys;
  }

  /** Returns one page, as the API sends it. */
  async page() {
    return this.#read(this.#query);
  }

  /** Yields this page and those that follow it. */
  async *pages() {
    let query = this.#query;
    for (;;) {
      const page = await this.#read(query);
      yield page;
      if (page.next === null) return;
      query = { ...query, around_rank: undefined, [this.#keys.cursor]: page.next };
    }
  }

  async *[Symbol.asyncIterator]() {
    for await (const page of this.pages()) yield* page[this.#keys.items];
  }
}

/** Sends requests, and sends them again. */
class Transport {
  #base;
  #defaults;

  constructor(url, options) {
    const base = new URL(url, globalThis.location?.href);
    if (base.username || base.password || base.search || base.hash) {
      throw invalidArgument("the address of the service has no user, query or fragment; the key is an option");
    }
    this.#base = base.origin + base.pathname.replace(/\/+$/, "");
    this.#defaults = options;
  }

  /**
   * Returns the body of the answer.
   *
   * `once`: the call takes an Idempotency-Key. `done`: codes that say, after an attempt without an answer, that this
   * attempt was done. `answers`: statuses beside 2xx that are no errors. `text`: the answer is not JSON. `again`:
   * whether an answer says to send the request again; if that cannot be done, the answer is returned.
   */
  async send(request, own = {}) {
    const options = {
      timeout: TIMEOUT_MS,
      attemptTimeout: ATTEMPT_TIMEOUT_MS,
      retries: RETRIES,
      ...given(this.#defaults),
      ...given(own),
    };
    const { method = "GET", path, query = {}, body, once, done = [], again } = request;
    const name = `${method} ${path}`;
    const idempotencyKey = once ? (options.idempotencyKey ?? (await newKey())) : null;
    const search = new URLSearchParams(Object.entries(given(query))).toString();
    const headers = { accept: request.text ? "text/plain" : "application/json" };
    if (body !== undefined) headers["content-type"] = "application/json";
    if (idempotencyKey !== null) headers["idempotency-key"] = idempotencyKey;
    const url = `${this.#base}${path}${search && `?${search}`}`;
    const init = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };

    const deadline = performance.now() + options.timeout;
    let outcomeUnknown = false;
    for (let attempt = 1; ; attempt++) {
      let answer;
      let error = null;
      try {
        const timeout = Math.min(options.attemptTimeout, deadline - performance.now());
        answer = await receive(url, init, options, timeout, name);
        options.onResponse?.(answer.response);
        if (!answer.response.ok && !request.answers?.includes(answer.response.status)) throw problem(answer, name);
        answer = bodyOf(answer, request, name);
        if (!again?.(answer)) return answer;
      } catch (caught) {
        if (!(caught instanceof LeaderboardError)) throw caught;
        error = caught;
        // Its own earlier attempt has removed it.
        if (outcomeUnknown && done.includes(error.code)) return undefined;
        outcomeUnknown ||= method !== "GET" && leavesOutcomeUnknown(error);
        Object.assign(error, { idempotencyKey, attempts: attempt, outcomeUnknown });
      }
      const delay = delayBefore(attempt, error?.retryAfter);
      const mayRepeat = error === null || TRY_AGAIN_STATUS.has(error.status) || TRY_AGAIN_CODES.has(error.code);
      if (!mayRepeat || attempt > options.retries || performance.now() + delay >= deadline) {
        if (error !== null) throw error;
        return answer;
      }
      await sleep(delay, options.signal);
    }
  }
}

/** Returns the response and its text. Throws what the caller's signal gives as its reason. */
async function receive(url, init, { fetch = globalThis.fetch, key, signal }, timeout, request) {
  const credential = typeof key === "function" ? await key() : key;
  signal?.throwIfAborted();
  const headers = new Headers(init.headers);
  if (credential) headers.set("authorization", `Bearer ${credential}`);
  const controller = new AbortController();
  const abort = () => controller.abort();
  const timer = setTimeout(abort, Math.min(Math.max(timeout, 0), LONGEST_TIMER_MS));
  signal?.addEventListener("abort", abort);
  try {
    // A redirect would make a POST a GET, and would lose the key.
    const response = await fetch(url, { ...init, headers, redirect: "manual", signal: controller.signal });
    const text = await response.text();
    return { response, text };
  } catch (cause) {
    signal?.throwIfAborted();
    if (controller.signal.aborted) {
      throw new LeaderboardError({ code: "timeout", detail: "there was no answer in time", request, cause });
    }
    throw new LeaderboardError({ code: "network_error", detail: String(cause?.message ?? cause), request, cause });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

function bodyOf({ response, text }, request, name) {
  if (request.text) return text;
  if (response.status === 204) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw unexpected("the answer is not JSON", response, name, cause);
  }
}

/** Returns the error for a response that is none of the API's answers. */
function problem({ response, text }, request) {
  const redirects = response.type === "opaqueredirect" || (response.status >= 300 && response.status < 400);
  if (redirects) return unexpected("the server redirects; use the address to which it redirects", response, request);
  const isProblem = response.headers.get("content-type")?.startsWith("application/problem+json");
  let found = null;
  try {
    found = isProblem ? JSON.parse(text) : null;
  } catch {
    // A truncated document is as good as none.
  }
  if (typeof found?.code !== "string") {
    return unexpected(`HTTP ${response.status}, which is not from the API`, response, request);
  }
  const { code, detail, errors } = found;
  return new LeaderboardError({
    code,
    detail,
    errors,
    request,
    status: response.status,
    retryAfter: retryAfterOf(response),
  });
}

function unexpected(detail, response, request, cause) {
  const { status } = response;
  const retryAfter = retryAfterOf(response);
  return new LeaderboardError({ code: "unexpected_response", detail, status, retryAfter, request, cause });
}

function invalidArgument(detail) {
  return new LeaderboardError({ code: "invalid_argument", detail });
}

function leavesOutcomeUnknown({ code, status }) {
  if (code !== "unexpected_response") return UNKNOWN_OUTCOME.has(code);
  // A proxy's 5xx, or an answer that cannot be read, says nothing about the write.
  return status >= 500 || (status >= 200 && status < 300);
}

/** Returns seconds, or null. The header is a number, or a date from a proxy. */
function retryAfterOf(response) {
  const text = response.headers.get("retry-after");
  if (text === null) return null;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : null;
}

/** Returns milliseconds: full jitter, after the time that the server asks for. */
function delayBefore(attempt, retryAfter) {
  const jitter = Math.random() * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (attempt - 1));
  return Math.min((retryAfter ?? 0) * 1000 + jitter, LONGEST_TIMER_MS);
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Returns 128 random bits. crypto.randomUUID does not exist on pages that were loaded by http://. */
async function newKey() {
  // Node.js 18 has no global `crypto`. A bundler must not look for this module.
  const module = "node:crypto";
  const crypto = globalThis.crypto ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ module)).webcrypto;
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns a value as one segment of a path. `..` would lead to another call. */
function segment(value) {
  const text = encodeURIComponent(String(value ?? "")).replace(/^%40/, "@");
  if (/^\.{0,2}$/.test(text)) throw invalidArgument(`${JSON.stringify(value) ?? "undefined"} is no name and no id`);
  return text;
}

function given(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}

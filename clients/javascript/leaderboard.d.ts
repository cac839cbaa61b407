/** A user: its id, as a number or as text, or `@` and its external id, such as `@steam:7656`. */
export type UserRef = number | string;

/** A season: its number, or the last one that ended. */
export type SeasonRef = number | "previous";

/** How a call is sent. Each may be given for all calls or for one. */
export interface CallOptions {
  /** Milliseconds for the whole call, with all its attempts: 30,000 by default. */
  timeout?: number;
  /** Milliseconds for one attempt: 10,000 by default. */
  attemptTimeout?: number;
  /** How often a call is sent again at most: 4 by default. */
  retries?: number;
  /** Ends the call; its promise is rejected with the signal's reason. */
  signal?: AbortSignal;
  /** Gets each response, for its headers, such as `Age`. Its body has been read. */
  onResponse?: (response: Response) => void;
}

export interface WriteOptions extends CallOptions {
  /** A name for this write, 1 to 255 visible ASCII characters. By default a new random one for each call. */
  idempotencyKey?: string;
}

export interface ClientOptions extends CallOptions {
  /** The API key or the user's token, or a function that returns it for each attempt. */
  key?: string | (() => string | Promise<string>);
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch;
}

export interface SeasonOptions extends CallOptions {
  season?: SeasonRef;
}

export interface ScoreOptions extends WriteOptions {
  /** Creates the user with this name if no user has the external id. */
  username?: string;
}

export interface RankOptions extends ScoreOptions {
  /** Whether the answer has the rank, which is read after the write. */
  rank?: boolean;
}

/** What selects a part of a list. */
export interface ListOptions extends CallOptions {
  /** How many items a page has: 1 to 1,000, 100 by default. */
  limit?: number;
  /** The `next` of the page before. */
  after?: string;
}

export interface SeasonListOptions extends CallOptions {
  limit?: number;
  /** The `next` of the page before. */
  before?: number;
}

export interface StandingsOptions extends ListOptions {
  /** Begins with the page around this rank. Not together with `after`. */
  aroundRank?: number;
}

export interface BoardStandingsOptions extends StandingsOptions {
  season?: SeasonRef;
}

export interface FieldProblem {
  field: string;
  message: string;
}

export class LeaderboardError extends Error {
  constructor(values: {
    code: string;
    detail: string;
    status?: number;
    retryAfter?: number | null;
    errors?: FieldProblem[];
    request?: string;
    cause?: unknown;
  });
  /**
   * A code of the API (docs/errors.md), which never changes, or one of the client: `network_error`, `timeout`,
   * `unexpected_response` (it is not from the API) or `invalid_argument` (nothing was sent).
   */
  code: string;
  /** What is wrong, for people. */
  detail: string;
  /** The HTTP status, 0 if there was no answer. */
  status: number;
  /** Seconds to wait before another attempt, null if the answer did not say. */
  retryAfter: number | null;
  /** What is wrong with each field of the body, for `invalid_field`. */
  errors: FieldProblem[];
  /** The key of a write. With it the same write can be sent again and is done once. Null for other calls. */
  idempotencyKey: string | null;
  /** How many times the call was sent. */
  attempts: number;
  /** Whether a write may have been done all the same. */
  outcomeUnknown: boolean;
}

/** A list that is read page by page. `for await` yields its items, from all pages. */
export interface List<Item, Page> extends AsyncIterable<Item> {
  /** Returns one page. */
  page(): Promise<Page>;
  /** Yields this page and those that follow it. */
  pages(): AsyncIterable<Page>;
}

export interface User {
  userId: number;
  username: string;
  imageUrl: string | null;
  score: number;
  /** The caller's own id for the user; missing where it has none. */
  externalId?: string;
}

export interface Standing extends User {
  rank: number;
}

/** A user as operators see it; `score` is that on the board `default`. */
export interface Account extends User {
  hidden: boolean;
}

export interface Context {
  user: Standing;
  /** Up to five, best first. */
  above: Standing[];
  /** Up to five, best first. */
  below: Standing[];
  /** How many users are on the board. */
  total: number;
}

export interface Top {
  users: Standing[];
}

export interface PageAnswer {
  users: Standing[];
  total: number;
  next: string | null;
}

export interface ScoreSet extends User {
  previousScore: number;
}

export interface ChangedEntry extends User {
  /** Null for a new entry. */
  previousScore: number | null;
  /** Whether the entry is new or better than before. */
  improved: boolean;
  season: number;
  /** With the option `rank`; null if it could not be read. */
  rank?: number | null;
}

export interface EntryError {
  code: string;
  detail: string;
}

/** What was done to one of many entries, or `error`. */
export type EntryResult =
  | (Omit<ChangedEntry, "rank"> & { error?: undefined })
  | { userId?: number; externalId?: string; error: EntryError };

export interface EntryResults {
  /** One for each item, in order. */
  results: EntryResult[];
}

export interface NewUser {
  username: string;
  score?: number;
  imageUrl?: string | null;
  externalId?: string;
}

/** Without an image the user has none. */
export interface PutUser {
  username: string;
  imageUrl?: string | null;
}

/** What is missing stays as it is. */
export interface UserChanges {
  username?: string;
  imageUrl?: string | null;
  hidden?: boolean;
  /** Cannot be changed once the user has one. */
  externalId?: string;
}

export type NewScore = (
  | { userId: number; externalId?: undefined; username?: undefined }
  | { externalId: string; userId?: undefined; username?: string }
) & (
  | { score: number; increment?: undefined }
  | { increment: number; score?: undefined }
);

export type Every = "hour" | "day" | "week" | "month" | "year";

/** When seasons end: `every` or `cron`, in a time zone of the IANA database. */
export interface Schedule {
  every?: Every | null;
  cron?: string | null;
  timezone?: string | null;
}

/** The rules of a board. What is missing or null gets its default. */
export interface Rules {
  better?: "higher" | "lower" | null;
  keeps?: "last" | "best" | "sum" | null;
  ties?: "id" | "first" | null;
  ranks?: "unique" | "shared" | null;
  decimals?: number | null;
  lowest?: number | null;
  highest?: number | null;
  season?: Schedule | null;
  keepSeasons?: number | null;
  title?: string | null;
}

export interface ScheduleAnswer {
  timezone: string;
  every?: Every;
  cron?: string;
}

export interface CurrentSeason {
  number: number;
  /** RFC 3339, in UTC. */
  startedAt: string;
  /** Null if it does not end by itself. */
  endsAt: string | null;
}

export interface SeasonAnswer extends CurrentSeason {
  /** Null for the current season. */
  endedAt: string | null;
}

export interface BoardAnswer {
  name: string;
  better: "higher" | "lower";
  keeps: "last" | "best" | "sum";
  ties: "id" | "first";
  ranks: "unique" | "shared";
  decimals: number;
  lowest: number | null;
  highest: number | null;
  season: ScheduleAnswer | null;
  keepSeasons: number | null;
  title: string | null;
  currentSeason: CurrentSeason;
}

export interface BoardsAnswer {
  boards: BoardAnswer[];
  next: string | null;
}

export interface SeasonsAnswer {
  seasons: SeasonAnswer[];
  next: number | null;
}

export interface UserBoards {
  boards: string[];
  next: string | null;
}

export interface FoundUsers {
  users: Account[];
  next: string | null;
}

export interface Status {
  service: string;
  version: string;
  /** `ok`, `degraded`, `unavailable` or `stopping`. */
  status: string;
  postgres: string;
  redis: string;
  writes: string;
}

declare class BoardReads<Reading extends CallOptions, Listing extends StandingsOptions> {
  /** The best n, best first. */
  top(n: number, options?: Reading): Promise<Top>;
  /** A user with its rank. */
  standing(user: UserRef, options?: Reading): Promise<Standing>;
  /** A user, up to five above, up to five below, and how many users there are. */
  context(user: UserRef, options?: Reading): Promise<Context>;
  /** The board page by page, best first. */
  standings(options?: Listing): List<Standing, PageAnswer>;
  /** Up to 100 users, best first, with their ranks among all. Those who are not on the board are left out. */
  friends(users: Iterable<UserRef>, options?: Reading): Promise<Top>;
}

/** The calls of the service. Its own reads and `setScore` are about the board `default`. */
export class Leaderboard extends BoardReads<CallOptions, StandingsOptions> {
  /** `url` is the address of the service; in a browser it may be relative to the page, such as `/`. */
  constructor(url: string | URL, options?: ClientOptions);
  /** Returns the calls about a board. Sends nothing. */
  board(name: string): Board;
  /** Sets a score on the board `default`. */
  setScore(user: UserRef, score: number, options?: ScoreOptions): Promise<ScoreSet>;
  createUser(user: NewUser, options?: WriteOptions): Promise<User>;
  /** Creates the user of an external id, or sets its name and image. `user` is `@` and the external id. */
  putUser(user: `@${string}`, values: PutUser, options?: CallOptions): Promise<User>;
  /** Renames a user, changes its image, hides or shows it on all boards (admin). */
  updateUser(user: UserRef, changes: UserChanges, options?: CallOptions): Promise<Account>;
  /** Erases a user from all boards (admin). */
  eraseUser(user: UserRef, options?: CallOptions): Promise<void>;
  /** The user of a name. */
  findUser(username: string, options?: CallOptions): Promise<Account>;
  /** The users whose names begin with a text, by name. */
  usersWithPrefix(prefix: string, options?: ListOptions): List<Account, FoundUsers>;
  /** The names of the boards that a user is on. */
  boardsOf(user: UserRef, options?: ListOptions): List<string, UserBoards>;
  /** All boards, by name. */
  boards(options?: ListOptions): List<BoardAnswer, BoardsAnswer>;
  status(options?: CallOptions): Promise<Status>;
  live(options?: CallOptions): Promise<{ status: string }>;
  /** The status, whether the process is ready or not. */
  ready(options?: CallOptions): Promise<Status>;
  /** The metrics as text, for Prometheus (admin). */
  metrics(options?: CallOptions): Promise<string>;
  openapi(options?: CallOptions): Promise<object>;
}

/** The calls about one board. */
declare class Board extends BoardReads<SeasonOptions, BoardStandingsOptions> {
  private constructor();
  readonly name: string;
  setScore(user: UserRef, score: number, options?: RankOptions): Promise<ChangedEntry>;
  /** Adds to a score, on a board that keeps the sum or the last. */
  increment(user: UserRef, by: number, options?: RankOptions): Promise<ChangedEntry>;
  /** Changes up to 1,000 entries. Items that were refused for a moment only are sent again. */
  setScores(scores: NewScore[], options?: WriteOptions): Promise<EntryResults>;
  /** Removes a user from the board. */
  remove(user: UserRef, options?: CallOptions): Promise<void>;
  /** The board with its rules and its current season. */
  get(options?: CallOptions): Promise<BoardAnswer>;
  /** Creates the board, or changes its rules (admin). A rule that is missing gets its default. */
  configure(rules: Rules, options?: CallOptions): Promise<BoardAnswer>;
  /** Deletes the board with all its seasons (admin). */
  delete(options?: CallOptions): Promise<void>;
  /** The seasons, newest first. */
  seasons(options?: SeasonListOptions): List<SeasonAnswer, SeasonsAnswer>;
  /** Ends the season of that number now; again, it changes nothing (admin). */
  endSeason(number: number, options?: CallOptions): Promise<SeasonAnswer>;
}

export type { Board };

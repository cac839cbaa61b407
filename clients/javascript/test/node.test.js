/** The cases in Node.js: `LEADERBOARD_URL=… LEADERBOARD_KEY=… node --test`. */

import { test } from "node:test";

import { cases, Env } from "./cases.js";

const env = new Env(process.env.LEADERBOARD_URL, process.env.LEADERBOARD_KEY, "node");

for (const [name, run] of Object.entries(cases)) test(name, () => run(env));

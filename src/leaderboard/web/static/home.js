// Keeps the board current and finds a user by id, through the public API. The page is complete without it.

const REFRESH_MS = 5000;
const TIMEOUT_MS = 10000;

const get = (id) => document.getElementById(id);
const board = get("board");
const imageSources = board.dataset.imageSources.split(" ").filter(Boolean);
const number = (value) => value.toLocaleString("en").replace("-", "\u2212");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const initial = (name) => (name.match(/[\p{L}\p{N}]/u) ?? [...name])[0]?.toUpperCase();

let shown = null;
let watched = null;

function row(user, changed) {
  const tr = get("row").content.firstElementChild.cloneNode(true);
  const rank = tr.querySelector(".rank");
  const face = tr.querySelector(".face");
  const score = tr.querySelector("data");
  rank.dataset.rank = user.rank;
  rank.firstElementChild.textContent = number(user.rank);
  tr.querySelector(".name").textContent = user.username;
  tr.querySelector(".id").textContent = `id ${user.userId}`;
  score.value = user.score;
  score.textContent = number(user.score);
  face.className = `face hue-${user.userId % 8}`;
  face.firstElementChild.textContent = initial(user.username);
  if (user.imageUrl && imageSources.some((source) => user.imageUrl.startsWith(source))) {
    const image = new Image();
    image.alt = "";
    image.referrerPolicy = "no-referrer";
    image.loading = "lazy";
    image.src = user.imageUrl;
    face.append(image);
  }
  tr.classList.toggle("changed", changed);
  return tr;
}

async function ask(path) {
  const options = { headers: { accept: "application/json" }, cache: "no-cache", signal: AbortSignal.timeout(TIMEOUT_MS) };
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail ?? answer.title ?? `status ${response.status}`);
  return { answer, age: response.headers.get("age") };
}

async function refresh() {
  const { answer, age } = await ask(board.dataset.source);
  const before = shown;
  shown = new Map(answer.users.map((user) => [user.userId, user.score]));
  const changed = (user) => before !== null && before.get(user.userId) !== user.score;
  get("rows").replaceChildren(...answer.users.map((user) => row(user, changed(user))));
  board.hidden = answer.users.length === 0;
  get("empty").hidden = answer.users.length > 0;
  const seconds = Number(age);
  get("notice").textContent =
    age === null
      ? ""
      : `These numbers are ${number(seconds)} ${seconds === 1 ? "second" : "seconds"} old: the database is unreachable.`;
}

async function find(id) {
  watched = id;
  const { answer } = await ask(`${board.dataset.root}/leaderboard/user/${encodeURIComponent(id)}/context`);
  // Closed, or another user was requested meanwhile.
  if (watched !== id) return;
  const rows = [...answer.above, answer.user, ...answer.below].map((user) => row(user, false));
  rows[answer.above.length].setAttribute("aria-current", "true");
  get("found-rows").replaceChildren(...rows);
  const name = document.createElement("bdi");
  name.textContent = answer.user.username;
  get("found-title").replaceChildren(name, ` is number ${number(answer.user.rank)}`);
  get("found").hidden = false;
}

function close() {
  get("found").hidden = true;
  watched = null;
}

get("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await find(get("find-id").value.trim());
    get("find-answer").textContent = "";
    get("found").focus();
  } catch (error) {
    close();
    get("find-answer").textContent = error.message;
  }
});
get("found-close").addEventListener("click", () => {
  close();
  get("find-id").focus();
});

for (const place of document.querySelectorAll("[data-origin]")) place.textContent = location.origin;
get("tools").hidden = false;

for (;;) {
  await pause(REFRESH_MS);
  // Replacing rows would take away what is being selected in them.
  if (!get("live").checked || document.hidden || !getSelection().isCollapsed) continue;
  try {
    await refresh();
    if (watched !== null) await find(watched);
  } catch (error) {
    get("notice").textContent = `Not up to date: ${error.message}`;
  }
}

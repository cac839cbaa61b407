// Lets each call of the API reader be tried from the page. Its curl lines are complete without it.

const inShell = (text) => text.replaceAll("'", "'\\''");

function queryOf(form) {
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll('[data-in="query"]')) if (input.value) query.set(input.name, input.value);
  return query.size ? `?${query}` : "";
}

const written = {
  path: (input) => encodeURIComponent(input.value),
  query: (input) => queryOf(input.form),
  body: (input) => inShell(input.value),
};

function follow(form, input) {
  const kind = input.dataset.in;
  const name = kind === "query" ? "[data-query]" : `[data-for="${CSS.escape(input.name)}"]`;
  const place = form.previousElementSibling.querySelector(name);
  input.addEventListener("input", () => {
    place.textContent = written[kind](input);
  });
}

function request(form) {
  let path = form.dataset.path;
  const options = { method: form.dataset.method.toUpperCase(), headers: { accept: "application/json, */*;q=0.5" } };
  for (const input of form.querySelectorAll("[data-in]")) {
    const kind = input.dataset.in;
    if (kind === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (kind === "header" && input.value) options.headers[input.name] = input.value;
    else if (kind === "body") {
      options.headers["content-type"] = "application/json";
      options.body = input.value;
    }
  }
  const key = document.getElementById("key").value;
  if (key && form.dataset.keyed === "1") options.headers.authorization = `Bearer ${key}`;
  return [path + queryOf(form), options];
}

function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function send(form) {
  const output = form.querySelector("output");
  const started = performance.now();
  output.textContent = "…";
  try {
    const response = await fetch(...request(form));
    const text = await response.text();
    const took = Math.round(performance.now() - started);
    output.textContent = `${response.status} ${response.statusText} · ${took} ms\n\n${readable(text)}`;
  } catch (error) {
    output.textContent = `No answer: ${error.message}`;
  }
}

for (const place of document.querySelectorAll("[data-origin]")) place.textContent = location.origin;
document.getElementById("key-form").addEventListener("submit", (event) => event.preventDefault());
for (const form of document.querySelectorAll("form.try")) {
  for (const input of form.querySelectorAll("[data-in]")) {
    if (input.dataset.in !== "header") follow(form, input);
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
  form.hidden = false;
}

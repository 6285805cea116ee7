// The page: what is asked for, the images that come, and what was asked for before.

import { Card, make, speak } from "./card.js";
import { History } from "./history.js";
import { ask, form, images, login } from "./server.js";
import { Viewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const NUMBERS = ["n", "seed", "candidates", "temperature", "guidance", "top_k", "top_p"];
const SETTINGS = ["size", ...NUMBERS.slice(2)];
const CALLED = { candidates: "best of", top_k: "top-k", top_p: "top-p" };
let describing = null, model = null, viewer = null, history = null, running = null;

function say(text, error = "") {
  // What stays as it is is not to be read out again.
  if (at("status").textContent !== text) at("status").textContent = text;
  at("error").textContent = error;
}

/** Asks for the key that the server needs; nothing has gone wrong before one is typed. */
function welcome(problem) {
  if (problem.status !== 401) return complain(problem);
  at("lock").hidden = false;
  at("key").focus();
  say("This server asks for an API key.");
}

/** Says what went wrong, and where. */
function complain(problem) {
  say("", problem.message);
  const field = problem.field && at(problem.field);
  if (problem.status === 401) at("lock").hidden = false;
  const input = problem.status === 401 ? at("key") : field;
  if (!input?.form) return;
  if (SETTINGS.includes(problem.field)) at("settings").open = true;
  input.setAttribute("aria-invalid", true);
  input.focus();
}

// What the server has ------------------------------------------------------------------------

/** Asks the server what it has, unless that is known. */
function ready() {
  describing ??= describe().catch((error) => {
    describing = null;
    throw error;
  });
  return describing;
}

async function describe() {
  model = (await (await ask("v1/models")).json()).data[0];
  at("model").textContent = model.id;
  document.title = `CogView: ${model.id}`;
  at("size").replaceChildren(...model.sizes.map((size) => new Option(size.replace("x", " × "), size)));
  at("n").max = model.most_images;
  at("n").value = Math.min(at("n").value, model.most_images);
  for (const [name, value] of Object.entries(model.sampling)) at(name).placeholder = value;
  const has = { sizes: model.sizes.length > 1, candidates: model.candidates, rows: model.rows > 1 };
  for (const element of document.querySelectorAll("[data-of]")) {
    if (!has[element.dataset.of]) element.remove();
  }
  for (const prompt of model.prompts) {
    const button = make("button", { type: "button" });
    speak(button, prompt);
    button.addEventListener("click", () => {
      at("prompt").value = prompt;
      at("form").requestSubmit();
    });
    document.querySelector("#examples ul").append(make("li", {}, button));
  }
  at("examples").hidden = !model.prompts.length;
  viewer = new Viewer(model, cards, run);
  history = new History(model.id);
  listHistory();
}

// Images -------------------------------------------------------------------------------------

const shelf = (id) => document.querySelector(`#${id} .cards`);
const cards = () => [...document.querySelectorAll(".card")].map((element) => element.card);

/** Makes room for new images: what is kept stays. */
function sweep() {
  for (const card of cards()) {
    if (!card.kept) card.element.remove();
    else if (card.element.parentElement !== shelf("kept")) shelf("kept").append(card.element);
  }
  at("kept").hidden = !shelf("kept").children.length;
}

/** Places for the images of a request, of which some go again if it ends before them. */
function places({ kind, fields, keep_rows }) {
  const title = kind === "completed" ? `Completed from ${keep_rows} of ${model.rows} rows` : "Images";
  at("results-title").textContent = title;
  speak(document.querySelector("#results .about"), fields.prompt);
  const fresh = Array.from({ length: fields.n }, (_, i) =>
    new Card(fields, kind, `image ${i + 1} of ${fields.n}`, (card) => viewer.open(card)));
  shelf("results").append(...fresh.map((card) => card.element));
  at("results").hidden = false;
  at("results").scrollIntoView({ block: "nearest" });
  return fresh;
}

/** The images of a request: `fields`, and an image with the rows of it that are kept. */
async function run({ kind, path, fields, base64, keep_rows }) {
  running?.abort();
  const mine = (running = new AbortController());
  const partial_images = fields.candidates > 1 ? 0 : model.rows - 1;
  const stream = { ...fields, stream: true, partial_images };
  const body = base64 ? form(base64, { ...stream, keep_rows }) : stream;
  const began = performance.now(), found = new Map();
  let free = null, finished = 0, warning = "";
  at("stop").disabled = false;
  at("results").ariaBusy = true;
  say("Waiting …");
  try {
    for await (const event of images(path, body, mine.signal)) {
      if (!free) {
        sweep();
        free = places({ kind, fields, keep_rows });
        if (!base64) remember({ ...fields, seed: event.seed });
      }
      // Of candidates the best come, whatever their numbers are.
      if (!found.has(event.index)) {
        found.set(event.index, fields.candidates > 1 ? free[found.size] : free[event.index]);
      }
      const card = found.get(event.index);
      if (event.type.endsWith(".completed")) card.finish(event.b64_json, event.score);
      else card.show(event.b64_json);
      finished += event.type.endsWith(".completed");
      if (event.warning) warning = `. Note: ${event.warning}`;
      say(`${finished} of ${fields.n} images`);
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    if (finished === fields.n) say(`${finished} ${finished > 1 ? "images" : "image"} in ${seconds} s${warning}`);
    else say("", "The server has ended before all images were there.");
  } catch (error) {
    // Another request has taken the place of one that it stopped.
    if (mine === running) error.name === "AbortError" ? say("Stopped.") : complain(error);
  }
  for (const card of free ?? []) if (!card.done) card.element.remove();
  if (mine !== running) return;
  running = null;
  at("results").ariaBusy = false;
  if (document.activeElement === at("stop")) at("go").focus();
  at("stop").disabled = true;
}

// The form -----------------------------------------------------------------------------------

/** What the form asks for; what is left open is as the bundle recommends. */
function asked() {
  const fields = { prompt: at("prompt").value };
  if (at("size") && at("size").value !== model.sizes[0]) fields.size = at("size").value;
  for (const name of NUMBERS) if (at(name)?.value) fields[name] = Number(at(name).value);
  return fields;
}

/** Fills the form as it was. */
function restore(entry) {
  at("prompt").value = entry.prompt;
  for (const name of NUMBERS) if (at(name)) at(name).value = entry[name] ?? "";
  if (at("size")) at("size").value = entry.size ?? model.sizes[0];
  count();
  at("go").focus();
  say("As it was then: press Generate to see the images.");
}

/** How many settings are other than recommended, beside their heading. */
function count() {
  const changed = SETTINGS.filter((name) => name !== "size" && at(name)?.value).length;
  document.querySelector("#settings summary").textContent = changed ? `Settings (${changed})` : "Settings";
}

at("form").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  login.key = at("key").value;
  for (const input of at("form").elements) input.removeAttribute("aria-invalid");
  try {
    await ready();
    await run({ kind: "generated", path: "v1/images/generations", fields: asked() });
  } catch (error) {
    complain(error);
  }
});
at("form").addEventListener("input", count);
at("form").addEventListener("invalid", (found) => {
  // Browsers point at what they can show.
  if (at("settings").contains(found.target)) at("settings").open = true;
}, true);
at("key").addEventListener("change", async () => {
  login.key = at("key").value;
  try {
    await ready();
    say("");
  } catch (error) {
    complain(error);
  }
});
at("prompt").addEventListener("keydown", (press) => {
  // Chinese is typed with an Enter of its own.
  if (press.key !== "Enter" || press.shiftKey || press.isComposing) return;
  press.preventDefault();
  at("form").requestSubmit();
});
at("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (press) => {
  if (press.key === "Escape" && !at("viewer").open) running?.abort();
});

// History ------------------------------------------------------------------------------------

function remember(fields) {
  history.add(fields);
  listHistory();
}

function listHistory() {
  at("history").replaceChildren(...history.entries.map((entry) => {
    const { prompt, n, ...settings } = entry;
    const words = make("span"), names = Object.entries(settings);
    speak(words, prompt);
    const about = names.map(([name, value]) => `${CALLED[name] ?? name} ${value}`).join(", ");
    const button = make("button", { type: "button" }, words,
      make("small", { textContent: `${n} ${n > 1 ? "images" : "image"}, ${about}` }));
    button.addEventListener("click", () => restore(entry));
    return make("li", {}, button);
  }));
  at("clear").hidden = !history.entries.length;
  at("history-note").hidden = history.entries.length && history.lasting;
  if (!history.lasting) at("history-note").textContent = "This browser keeps nothing: the list ends with the page.";
}

at("clear").addEventListener("click", () => {
  history.clear();
  listHistory();
  at("prompt").focus();
});

ready().catch(welcome);

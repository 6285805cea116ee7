"use strict";
// The rater's name and the study's key are behind the # of the address, which is not sent to the
// server: a link with them is all that a rater needs to go on.
const at = (id) => document.getElementById(id);
const link = new URLSearchParams(location.hash.slice(1));
let study = null, place = 0, urls = [], busy = false, early = false;

function say(text, error = false) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

async function ask(path, options = {}) {
  const key = link.get("key");
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) throw new Error("Open the link that you were given: it has a key in it.");
  let message = `status ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* no JSON */ }
  throw new Error(message);
}

const base = () => `study/${encodeURIComponent(link.get("rater"))}`;
const draft = () => `${location.pathname}${study.rater}/${place}`;

function show(id) {
  for (const each of ["start", "rating", "end"]) at(each).hidden = each !== id;
}

function choices(legend, name, values, labels) {
  const group = document.createElement("fieldset");
  group.className = "question";
  group.setAttribute("role", "radiogroup");
  group.dataset.name = name;
  const title = document.createElement("legend");
  title.textContent = legend;
  const row = document.createElement("div");
  row.className = "choices";
  values.forEach((value, i) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name, value });
    const face = document.createElement("span");
    face.append(...(labels ? labels[i] : [String(value)]));
    label.append(input, face);
    row.append(label);
  });
  group.append(title, row);
  return group;
}

const to = (most) => Array.from({ length: most }, (_, i) => i + 1);

function picture(url, alt) {
  const image = new Image();
  image.alt = alt;
  image.src = url;
  return image;
}

function draw(caption, blobs) {
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = blobs.map((blob) => URL.createObjectURL(blob));
  at("caption").textContent = caption;
  at("images").replaceChildren(...urls.map((url, i) => {
    const card = document.createElement("fieldset");
    card.className = "image";
    const title = document.createElement("legend");
    title.textContent = `Image ${i + 1}`;
    const questions = study.questions.map(({ name, text, most }) =>
      choices(`${text} (1 worst, ${most} best)`, `${i}-${name}`, to(most)));
    card.append(title, picture(url, `Image ${i + 1}`), ...questions);
    return card;
  }));
  const best = choices("The best image", "best", to(urls.length),
    urls.map((url, i) => [picture(url, ""), `Image ${i + 1}`]));
  best.id = "best";
  at("best").replaceWith(best);
  return sharpen();
}

// Small images are shown in blocks of their own pixels: all of a caption, or none.
async function sharpen() {
  const images = [...at("images").querySelectorAll("img")];
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  const small = images.every((image) => image.naturalWidth * 2 <= image.clientWidth);
  for (const image of document.querySelectorAll("img")) image.classList.toggle("small", small);
}

function groups() { return [...at("rating").querySelectorAll(".question")]; }
function chosen(group) { return group.querySelector("input:checked"); }
function focusOn(group) { (chosen(group) ?? group.querySelector("input")).focus(); }

function choose(group, value) {
  const input = group.querySelector(`input[value="${value}"]`);
  if (!input) return false;
  input.checked = true;
  group.classList.remove("missing");
  return true;
}

function fill(rating) {
  for (const group of groups()) {
    const [image, question] = group.dataset.name.split("-");
    const value = question ? rating.scores?.[image]?.[question] : rating.best;
    if (value) choose(group, value);
  }
}

function keep() {
  if (!busy) sessionStorage.setItem(draft(), JSON.stringify(answers()));
}

function answers() {
  const scores = Array.from({ length: study.images }, () => ({}));
  const found = { scores };
  for (const group of groups()) {
    const [image, question] = group.dataset.name.split("-"), input = chosen(group);
    if (input && question) scores[image][question] = Number(input.value);
    else if (input) found.best = Number(input.value);
  }
  return found;
}

async function open(number) {
  const { caption, rating } = await (await ask(`${base()}/${number}`)).json();
  const blobs = await Promise.all(to(study.images).map(async (image) =>
    (await ask(`${base()}/${number}/${image}.png`)).blob()));
  place = number;
  show("rating");
  await draw(caption, blobs);
  const kept = sessionStorage.getItem(draft());
  if (kept || rating) fill(kept ? JSON.parse(kept) : rating);
  at("place").textContent = `${place + 1} of ${study.captions}`;
  at("progress").hidden = false;
  at("progress").max = study.captions;
  at("progress").value = study.rated.length;
  at("previous").disabled = place === 0;
  at("caption").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  if (early) say("The images are there: keys count from now on.");
}

// The place after this one, then the first that was left out; at the end there is none.
function following() {
  if (place + 1 < study.captions) return place + 1;
  return to(study.captions).map((number) => number - 1).find((number) => !study.rated.includes(number));
}

async function save() {
  const missing = groups().filter((group) => !chosen(group));
  for (const group of groups()) group.classList.toggle("missing", missing.includes(group));
  if (missing.length) {
    focusOn(missing[0]);
    say(`${missing.length} ${missing.length === 1 ? "answer is" : "answers are"} missing`, true);
    return;
  }
  const body = JSON.stringify(answers()), headers = { "content-type": "application/json" };
  await ask(`${base()}/${place}`, { method: "POST", headers, body });
  sessionStorage.removeItem(draft());
  if (!study.rated.includes(place)) study.rated.push(place);
  say("saved");
  const next = following();
  if (next !== undefined) return open(next);
  at("progress").value = study.rated.length;
  at("place").textContent = `${study.rated.length} of ${study.captions} rated`;
  show("end");
  at("end").querySelector("h2").focus();
}

// One thing at a time, and what fails is said. Meanwhile keys count for nothing, lest they score
// what is about to go or was not seen yet; that is said too.
async function attempt(work) {
  if (busy) return;
  busy = at("save").disabled = true;
  early = false;
  try { await work(); } catch (error) {
    say(error instanceof TypeError ? "The server does not answer: try again." : error.message, true);
  }
  busy = at("save").disabled = false;
}

async function begin() {
  if (!link.get("rater")) {
    show("start");
    at("name").focus();
    return;
  }
  study = await (await ask(base())).json();
  place = study.captions - 1;
  const first = to(study.captions).map((number) => number - 1).find((n) => !study.rated.includes(n));
  if (study.rated.length) say(`${study.rated.length} of ${study.captions} rated before`);
  if (first !== undefined) return open(first);
  at("place").textContent = `${study.rated.length} of ${study.captions} rated`;
  show("end");
}

function previous() {
  if (place > 0) return attempt(() => { say(""); return open(place - 1); });
}

at("start").addEventListener("submit", (event) => {
  event.preventDefault();
  link.set("rater", at("name").value.trim());
  history.replaceState(null, "", `#${link}`);
  attempt(async () => {
    try { await begin(); say(""); } catch (error) { link.delete("rater"); throw error; }
  });
});
at("rating").addEventListener("submit", (event) => { event.preventDefault(); attempt(save); });
at("rating").addEventListener("change", (event) => {
  event.target.closest(".question").classList.remove("missing");
  keep();
});
at("previous").addEventListener("click", previous);
at("review").addEventListener("click", () => attempt(() => open(0)));
window.addEventListener("hashchange", () => location.reload());

function wait(event) {
  if (event.repeat || !/^([0-9]|Arrow.*|Backspace)$/.test(event.key)) return;
  early = true;
  say("Wait for the images: keys count once they are there.");
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (busy && at("start").hidden) return wait(event);
  if (busy || at("rating").hidden) return;
  const all = groups(), here = all.indexOf(event.target.closest(".question"));
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (/^[0-9]$/.test(event.key)) {
    const group = here < 0 ? all.find((each) => !chosen(each)) : all[here];
    if (!group) return;
    const value = event.key === "0" ? 10 : Number(event.key);
    if (!choose(group, value)) {
      say(`expected 1 to ${group.querySelectorAll("input").length}`, true);
      return;
    }
    say("");
    keep();
    const next = all[all.indexOf(group) + 1];
    if (next) focusOn(next); else at("save").focus();
  } else if (step && event.target.tagName !== "BUTTON") {
    const next = here < 0 ? (step > 0 ? 0 : all.length - 1) : here + step;
    if (all[next]) focusOn(all[next]);
  } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
    attempt(save);
  } else if (event.key === "Backspace") {
    previous();
  } else return;
  event.preventDefault();
});
attempt(begin);

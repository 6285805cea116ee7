// One image at its largest, and what can be done with it.

import { Card, make, speak } from "./card.js";
import { send } from "./server.js";

const at = (id) => document.getElementById(id);
const dialog = at("viewer"), vary = at("vary"), complete = at("complete");
const NAMES = { seed: "Seed", index: "Index", temperature: "Temperature", guidance: "Guidance",
  top_k: "Top-k", top_p: "Top-p", kept_codes: "Codes kept", upscaled_from: "Upscaled from", model: "Model" };

export class Viewer {
  /**
   * model: what the server says of itself. cards: all that there are now, in their order.
   * run: asks for new images.
   */
  constructor(model, cards, run) {
    Object.assign(this, { model, cards, run, card: null, working: 0 });
    at("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (click) => click.target === dialog && dialog.close());
    dialog.addEventListener("close", () => this.leave());
    dialog.addEventListener("keydown", (press) => this.press(press));
    at("previous").addEventListener("click", () => this.step(-1));
    at("next").addEventListener("click", () => this.step(1));
    at("keep").addEventListener("click", () => this.card.keep(!this.card.kept));
    at("caption")?.addEventListener("click", () => this.work("Reading the image", this.describe));
    at("score")?.addEventListener("click", () => this.work("Scoring", this.judge));
    at("magnify")?.addEventListener("click", () => this.work("Magnifying", this.magnify));
    this.onForm(vary, this.vary);
    if (!complete) return;
    const rows = complete.querySelector("[name=keep_rows]");
    rows.max = model.rows - 1;
    rows.value = model.rows >> 1;
    rows.addEventListener("input", () => this.cut());
    complete.addEventListener("toggle", () => this.cut());
    this.onForm(complete, this.complete);
  }

  onForm(details, action) {
    const element = details.querySelector("form");
    element.elements.n.max = this.model.most_images;
    element.addEventListener("submit", (submit) => {
      submit.preventDefault();
      action.call(this, Object.fromEntries(new FormData(element)));
    });
  }

  open(card) {
    this.leave();
    this.card = card;
    for (const details of [vary, complete]) {
      if (!details) continue;
      details.open = false;
      const { temperature, prompt } = details.querySelector("form").elements;
      temperature.value = card.fields.temperature ?? "";
      temperature.placeholder = this.model.sampling.temperature;
      if (prompt) prompt.value = card.fields.prompt;
    }
    this.say("");
    card.changed = () => this.show();
    this.show();
    if (!dialog.open) dialog.showModal();
    at("viewer-title").focus();
    dialog.scrollTop = 0;
  }

  leave() {
    if (this.card) this.card.changed = () => {};
    if (!dialog.open) this.card = null;
  }

  /** What the card is now. */
  show() {
    const { card } = this, all = this.cards();
    speak(at("viewer-title"), card.fields.prompt);
    at("large").src = card.image.src;
    at("large").alt = card.image.alt;
    at("keep").textContent = card.kept ? "Kept" : "Keep";
    at("keep").setAttribute("aria-pressed", card.kept);
    for (const id of ["keep", "download", "tools", "vary", "complete"]) {
      if (at(id)) at(id).hidden = !card.done;
    }
    at("previous").disabled = all[0] === card;
    at("next").disabled = all.at(-1) === card;
    if (at("magnify")) at("magnify").hidden = card.width > this.size;
    this.cut();
    if (!card.done) return at("facts").replaceChildren();
    at("download").href = card.image.src;
    at("download").download = card.name;
    const facts = Object.entries(NAMES).filter(([name]) => name in card.facts);
    const rows = facts.map(([name, called]) => [called, card.facts[name]]);
    rows.push(["Size", `${card.width} × ${card.width}`]);
    if (card.score !== null) rows.unshift(["CapLoss", `${card.score.toFixed(2)} (lower is better)`]);
    if (card.caption !== null) rows.unshift(["Caption", card.caption]);
    return at("facts").replaceChildren(...rows.map(([called, value]) => {
      const written = make("dd");
      speak(written, String(value));
      return make("div", {}, make("dt", { textContent: called }), written);
    }));
  }

  get size() {
    return parseInt(this.model.sizes[0], 10);
  }

  /** Shows which part stays, while that is chosen. */
  cut() {
    at("cut").hidden = !complete?.open || !this.card?.done;
    if (!complete) return;
    const rows = complete.querySelector("[name=keep_rows]").value;
    at("rows-kept").textContent = `${rows} of ${this.model.rows}`;
    at("cut").style.top = `${(100 * rows) / this.model.rows}%`;
  }

  press(press) {
    if (press.ctrlKey || press.altKey || press.metaKey) return;
    if (press.target.closest("input, textarea, select")) return;
    const key = press.key.toLowerCase();
    if (key === "arrowleft") this.step(-1);
    else if (key === "arrowright") this.step(1);
    else if (key === "k" && this.card.done) at("keep").click();
    else if (key === "d" && this.card.done) at("download").click();
    else return;
    press.preventDefault();
  }

  step(by) {
    const all = this.cards(), next = all[all.indexOf(this.card) + by];
    if (next) this.open(next);
  }

  say(text, error = "") {
    at("viewer-status").textContent = text;
    at("viewer-error").textContent = error;
  }

  /** Does something that takes a while, and says what and how it went. */
  async work(what, action) {
    const { card } = this, mine = ++this.working;
    const say = (...words) => mine === this.working && card === this.card && this.say(...words);
    this.say(`${what} …`);
    try {
      say(await action.call(this, card));
    } catch (error) {
      say("", error.message);
    }
    card.changed();
  }

  async describe(card) {
    card.caption = (await send("v1/captions", card.base64, {})).text;
    return `Caption: ${card.caption}`;
  }

  async judge(card) {
    card.score = (await send("v1/scores", card.base64, { prompt: card.fields.prompt })).score;
    return `CapLoss: ${card.score.toFixed(2)}, lower is better`;
  }

  async magnify(card) {
    const fields = { prompt: card.fields.prompt, seed: card.facts.seed, image_size: this.size };
    const found = await send("v1/images/upscales", card.base64, fields);
    const larger = new Card(card.fields, "magnified", `${card.about}, magnified`, (each) => this.open(each));
    larger.finish(found.b64_json);
    card.element.after(larger.element);
    if (card.kept) larger.keep(true);
    if (this.card === card) this.open(larger);
    return `Magnified to ${larger.width} × ${larger.width}`;
  }

  /** The settings of the open image, with some that are other. */
  fields(other) {
    const { seed, temperature, ...fields } = { ...this.card.fields, n: Number(other.n) };
    if (other.temperature !== "") fields.temperature = Number(other.temperature);
    return fields;
  }

  vary(chosen) {
    const fields = this.fields(chosen);
    if (chosen.seed === "same") fields.seed = this.card.facts.seed;
    this.begin({ kind: "generated", path: "v1/images/generations", fields });
  }

  complete(chosen) {
    const { size, candidates, ...fields } = this.fields(chosen);
    fields.prompt = chosen.prompt;
    const { base64 } = this.card, keep_rows = Number(chosen.keep_rows);
    this.begin({ kind: "completed", path: "v1/images/edits", fields, base64, keep_rows });
  }

  /** Asks for images that come from the open one, which is kept beside them. */
  begin(asked) {
    this.card.keep(true);
    dialog.close();
    this.run(asked);
  }
}

// An image on the page: a place for it at first, then its rows as they come, then the image.

import { factsOf, widthOf } from "./server.js";

/** An element of a kind with properties and children. */
export function make(kind, properties = {}, ...children) {
  const { aria = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(kind), rest);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

/** Writes a prompt, in the voice of its language. */
export function speak(element, prompt) {
  element.textContent = prompt;
  element.lang = /\p{Script=Han}/u.test(prompt) ? "zh" : "en";
}

export class Card {
  /**
   * fields: the prompt and settings that were asked for. kind: generated, completed or magnified.
   * about: which image of how many. opened: called when a person wants to see it at its largest.
   */
  constructor(fields, kind, about, opened) {
    Object.assign(this, { fields, kind, about, base64: null, facts: null, width: 0, kept: false });
    this.caption = this.score = null;
    this.image = make("img", { alt: `${fields.prompt}, ${about}, waiting` });
    const label = make("span");
    speak(label, fields.prompt);
    this.keeps = make("button", { type: "button", textContent: "Keep", aria: { pressed: false } });
    this.saves = make("a", { textContent: "Download" });
    const open = make("button", { type: "button", className: "open" }, this.image);
    this.element = make("li", { className: "card waiting", card: this }, open,
      make("div", { className: "under" }, label, this.keeps, this.saves));
    this.keeps.hidden = this.saves.hidden = true;
    open.addEventListener("click", () => opened(this));
    this.keeps.addEventListener("click", () => this.keep(!this.kept));
    this.changed = () => {};
  }

  get done() {
    return this.facts !== null;
  }

  get name() {
    const words = this.fields.prompt.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 60);
    const kind = this.kind === "generated" ? "" : `_${this.kind}`;
    return `${words}_${this.facts.seed}_${this.facts.index ?? 0}${kind}.png`;
  }

  /** The rows that there are. */
  show(base64) {
    this.base64 = base64;
    this.image.src = `data:image/png;base64,${base64}`;
    this.image.alt = `${this.fields.prompt}, ${this.about}, on its way`;
    this.element.classList.replace("waiting", "partial");
    this.changed();
  }

  /** The whole image, and its CapLoss where it has one. */
  finish(base64, score = null) {
    this.show(base64);
    this.facts = factsOf(base64);
    this.width = widthOf(base64);
    this.score = score;
    this.image.alt = `${this.fields.prompt}, ${this.about}, seed ${this.facts.seed}`;
    this.element.classList.remove("partial");
    this.saves.setAttribute("aria-label", `Download ${this.about}`);
    this.saves.href = this.image.src;
    this.saves.download = this.name;
    this.keeps.hidden = this.saves.hidden = false;
    this.keep(false);
  }

  keep(kept) {
    this.kept = kept;
    const word = (this.keeps.textContent = kept ? "Kept" : "Keep");
    this.keeps.setAttribute("aria-label", `${word} ${this.about}`);
    this.keeps.setAttribute("aria-pressed", kept);
    this.element.classList.toggle("kept", kept);
    this.changed();
  }
}

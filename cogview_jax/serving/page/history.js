// Prompts with their settings, kept by the browser.

/** The newest that are kept, and how many letters they may have together. */
const MOST = 50, LETTERS = 60_000;

/** What was asked of a model, the newest first. Without the browser's leave it ends with the page. */
export class History {
  constructor(model) {
    this.place = `cogview.history.${model}`;
    this.lasting = true;
    this.entries = [];
    this.read();
  }

  /** What other tabs have added counts too. */
  read() {
    try {
      const found = JSON.parse(localStorage.getItem(this.place) ?? "[]");
      this.entries = found.filter((entry) => typeof entry.prompt === "string");
    } catch (error) {
      // Damaged entries are given up; what cannot be read at all is not written either.
      this.lasting = error instanceof SyntaxError || error instanceof TypeError;
    }
  }

  /** Puts an entry first; the same one of before goes. */
  add(entry) {
    this.read();
    const same = JSON.stringify(entry);
    this.entries = [entry, ...this.entries.filter((each) => JSON.stringify(each) !== same)];
    this.entries.length = Math.min(this.entries.length, MOST);
    while (this.entries.length > 1 && JSON.stringify(this.entries).length > LETTERS) this.entries.pop();
    try {
      localStorage.setItem(this.place, JSON.stringify(this.entries));
    } catch {
      this.lasting = false;
    }
  }

  clear() {
    this.entries = [];
    try {
      localStorage.removeItem(this.place);
    } catch {
      this.lasting = false;
    }
  }
}

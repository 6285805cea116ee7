// Requests to the server, and what its PNG files say of themselves.

/** The key that requests carry, where the server asks for one. */
export const login = { key: "" };

/** Something that went wrong, in words for people; `field` is the one that is to be changed. */
export class Problem extends Error {
  constructor(message, status = 0, field = null) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

const GONE = "The server does not answer. Is it still running?";

/** The response to a request, or a Problem. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (login.key) headers.authorization = `Bearer ${login.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(GONE);
  }
  if (response.ok) return response;
  let error;
  try {
    error = (await response.json()).error;
  } catch {
    throw new Problem(`The server answers with status ${response.status}.`, response.status);
  }
  throw new Problem(sentence(error.message), response.status, error.param);
}

/** The data of a response to a form of an image and other fields. */
export async function send(path, base64, fields) {
  return (await (await ask(path, { method: "POST", body: form(base64, fields) })).json()).data[0];
}

/** The events of a response as they come: partial and finished images. */
export async function* images(path, body, signal) {
  const json = !(body instanceof FormData);
  const response = await ask(path, {
    method: "POST",
    headers: json ? { "content-type": "application/json" } : {},
    body: json ? JSON.stringify(body) : body,
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem(GONE);
    }
    if (part.done) return;
    const blocks = (text + part.value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const line = block.split("\n").find((each) => each.startsWith("data: "));
      if (!line) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Problem(sentence(event.error.message));
      yield event;
    }
  }
}

/** A form with an image and other fields; those without a value are left out. */
export function form(base64, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) body.set(name, value);
  body.set("image", new Blob([bytesOf(base64)], { type: "image/png" }), "image.png");
  return body;
}

/** How the image of a PNG file was made: the JSON in its text `cogview`. */
export function factsOf(base64) {
  const bytes = bytesOf(base64), view = new DataView(bytes.buffer);
  const text = (from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (text(at + 4, 12) !== "tEXtcogview\0") continue;
    return JSON.parse(text(at + 16, view.getUint32(at) - 8));
  }
  return {};
}

/** The width of a PNG file's image in pixels. */
export function widthOf(base64) {
  return new DataView(bytesOf(base64.slice(0, 64)).buffer).getUint32(16);
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
}

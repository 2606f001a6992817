// Calls of the REST service. Addresses are relative, so that the page also works below a prefix.

let token = "";

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function setToken(value) {
  token = value.trim();
}

export async function call(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service does not answer. Is it still running?");
  }
  if (!response.ok) {
    const content = await response.json().catch(() => ({}));
    const again = response.headers.get("retry-after");
    const wait = again ? ` (again in ${again} s)` : "";
    throw new Refused(response.status, `${content.detail ?? response.statusText}${wait}`);
  }
  return response;
}

export const json = async (path) => (await call(path)).json();

// Segments a picture; `onStage` is called with each stage. Resolves to the result.
export async function segment(fields, signal, onStage) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof File) body.append(name, value, value.name);
    else body.append(name, value);
  }
  const response = await call("v1/segment", { method: "POST", body, signal, headers: { Accept: "application/x-ndjson" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "The connection ended before the result arrived.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.stage === "done") return event.result;
      if (event.stage === "failed") throw new Refused(event.status, event.detail);
      onStage(event);
    }
  }
}

export async function files(picture, result, format) {
  const body = new FormData();
  body.append("image", picture, picture.name);
  body.append("result", JSON.stringify(result));
  body.append("files", format);
  return (await call("v1/export", { method: "POST", body })).blob();
}

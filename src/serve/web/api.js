// The server's API: what there is, and chat as a stream.

const KEY = "lorry-key";

// The key stays in this tab. Where even that storage is forbidden it stays in this variable.
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
}

export const currentKey = () => key;

export function useKey(text) {
  key = text.trim();
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
  }
}

// What went wrong, in words for people. `status` is 0 where there was no answer.
export class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;  // seconds
  }
}

async function refusal(response) {
  let message = "";
  try {
    const {error} = await response.json();
    message = typeof error === "string" ? error : error?.message ?? "";
  } catch {
    message = "";  // no JSON: a proxy's page, perhaps
  }
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return new ApiError(message || response.statusText || "the server refused",
                      response.status, Number.isNaN(seconds) ? null : seconds);
}

async function ask(path, options = {}) {
  // A key can hold anything that was pasted; headers take printable ASCII only.
  if (/[^\x21-\x7e]/.test(key)) throw new ApiError("the API key has characters that no key has", 401);
  const headers = {...options.headers, ...(key ? {authorization: `Bearer ${key}`} : {})};
  let response;
  try {
    response = await fetch(path, {...options, headers, cache: "no-store"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

const getJson = async (path) => (await ask(path)).json();

// {base, adapters: [id, ...], examples, version}
export async function about() {
  const [models, info] = await Promise.all([getJson("/v1/models"), getJson("/info")]);
  const base = models.data.find((model) => model.parent === null) ?? models.data[0];
  return {
    base: base.id,
    adapters: models.data.filter((model) => model !== base).map((model) => model.id),
    examples: (info.example_prompts ?? []).filter((text) => typeof text === "string"),
    version: info.version ?? "",
  };
}

// The data of each event of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart()).join("\n");
      if (data) yield data;
    }
  }
}

// Yields {text, tokens, finish, usage}, each with what is new. Throws ApiError, or AbortError when
// `signal` fires.
export async function* chat(request, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: {"content-type": "application/json"},
    body: JSON.stringify({...request, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? "the server failed", response.status);
      const choice = chunk.choices?.[0];
      yield {
        text: choice?.delta?.content ?? "",
        tokens: choice?.logprobs?.content ?? [],
        finish: choice?.finish_reason ?? null,
        usage: chunk.usage ?? null,
      };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("the connection to the server was lost");
  }
  throw new ApiError("the connection ended before the answer did");
}

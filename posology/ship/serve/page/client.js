// Asks the server, and words what may go wrong so that whoever reads it knows what to do.

export class Refused extends Error {
  // status is 0 where no answer came; wait is in seconds, or null.
  constructor(status, words, wait = null) {
    super(words);
    this.status = status;
    this.wait = wait;
  }
}

const WORDS = {
  400: "The server could not read the request.",
  401: "The server wants a token, or another one than this.",
  403: "The server does not allow this.",
  404: "A model that was asked for is no longer there. The list has been read again.",
  413: "The text is too large for this server. Send a part of it.",
  422: "The server does not take this request.",
  429: "The server has as much to do as it can hold.",
  503: "The server cannot answer now: it is starting, stopping or too busy.",
  504: "The answer took longer than this server allows. Try a shorter text or fewer models.",
};

function seconds(header) {
  if (!header) return null;
  const given = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(given) ? Math.min(Math.max(Math.ceil(given), 1), 3600) : null;
}

// The server's own sentence, where it gives one.
function sentence(body) {
  const detail = body?.detail ?? body?.error ?? body?.message;
  if (typeof detail === "string") return detail;
  if (typeof detail?.message === "string") return detail.message;
  if (!Array.isArray(detail)) return "";
  return detail.slice(0, 3).map((one) => [(one.loc ?? []).join("."), one.msg].filter(Boolean).join(": ")).join("; ");
}

export async function ask(path, { token = "", body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit",
      redirect: "error", body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "No answer from the server. It may have been stopped, or the connection is broken.");
  }
  const content = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (answer.ok && content !== null) return content;
  const known = WORDS[answer.status] ?? `The server failed (${answer.status}). Its log says why.`;
  const own = answer.status === 401 || answer.status === 404 ? "" : sentence(content);
  throw new Refused(answer.status, own ? `${known} It says: ${own}` : known, seconds(answer.headers.get("Retry-After")));
}

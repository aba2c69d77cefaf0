// An answer's text as tokens, and the little window with a token's probability and the others that
// were likely in its place.
import {$, make} from "./dom.js";

const tokensOf = new WeakMap();  // span: the tokens of its text

const decoder = new TextDecoder();
const textOf = (token) => (token.bytes ? decoder.decode(new Uint8Array(token.bytes)) : token.token);

// Appends what came. A token whose text is not its own (half a character, text that was held back)
// shares a span with its neighbours.
export function appendPiece(answer, text, tokens) {
  const own = tokens.length > 1 && tokens.map(textOf).join("") === text;
  const pieces = own ? tokens.map((token) => [textOf(token), [token]]) : [[text, tokens]];
  for (const [part, its] of pieces) {
    const waiting = answer.waiting ?? [];
    if (!part) {
      answer.waiting = [...waiting, ...its];
      continue;
    }
    answer.waiting = [];
    const span = make("span", {class: "token"}, part);
    const all = [...waiting, ...its];
    if (all.length > 0) {
      tokensOf.set(span, all);
      span.style.setProperty("--doubt", (1 - Math.min(...all.map((t) => Math.exp(t.logprob)))).toFixed(3));
    }
    answer.textElement.append(span);
  }
}

// Rounded so that neither certainty nor impossibility is claimed.
export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value > 99.9) return "> 99.9 %";
  if (value < 0.1) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
}

// Blanks that can be seen.
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→") || "∅";

function rowOf(candidate, chosen) {
  const bar = make("span", {class: "bar"}, make("span"));
  bar.firstChild.style.width = `${(100 * Math.exp(candidate.logprob)).toFixed(1)}%`;
  return make("div", {class: chosen ? "row chosen" : "row"},
              make("code", {}, visible(candidate.token)), bar, make("span", {class: "percent"}, percent(candidate.logprob)));
}

function show(span) {
  const tip = $("tip");
  tip.replaceChildren();
  for (const token of tokensOf.get(span)) {
    const others = (token.top_logprobs ?? []).filter((other) => other.token !== token.token);
    const all = [token, ...others].sort((a, b) => b.logprob - a.logprob);
    tip.append(make("div", {class: "candidates"}, ...all.map((one) => rowOf(one, one === token))));
  }
  tip.hidden = false;
  const [line] = span.getClientRects();
  const {width, height} = tip.getBoundingClientRect();
  const below = line.bottom + 6;
  const y = below + height < innerHeight ? below : line.top - height - 6;
  tip.style.left = `${Math.max(8, Math.min(line.left, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, y)}px`;
}

let current = null;

export function hideTip() {
  current?.classList.remove("current");
  current = null;
  $("tip").hidden = true;
}

export const tipIsOpen = () => current !== null;

function choose(span) {
  if (span === current) return;
  hideTip();
  if (!span || !tokensOf.has(span)) return;
  current = span;
  span.classList.add("current");
  show(span);
}

// Arrow keys walk through the tokens; what is shown is also said.
function step(text, by) {
  const spans = [...text.children].filter((span) => tokensOf.has(span));
  if (spans.length === 0) return;
  const at = spans.indexOf(current);
  const next = at < 0 ? (by > 0 ? 0 : spans.length - 1) : Math.max(0, Math.min(spans.length - 1, at + by));
  choose(spans[next]);
  spans[next].scrollIntoView({block: "nearest"});
  show(spans[next]);
  const [token] = tokensOf.get(spans[next]);
  $("status").textContent = `${token.token}, ${percent(token.logprob)}`;
}

// `text`: the element that holds an answer's spans.
export function watchTokens(text) {
  const at = (event) => event.target.closest(".token");
  text.addEventListener("pointerover", (event) => choose(at(event)));
  text.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hideTip();
  });
  text.addEventListener("click", (event) => choose(at(event)));
  text.addEventListener("blur", hideTip);
  text.addEventListener("keydown", (event) => {
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(text, by);
  });
}

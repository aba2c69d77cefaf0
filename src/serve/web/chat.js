// The conversation: turns of one prompt and an answer in each column.
import {ApiError, chat} from "./api.js";
import {$, announce, button, make} from "./dom.js";
import {allColumns, choiceOf} from "./columns.js";
import {openSettings, sampling, systemPrompt} from "./settings.js";
import {appendPiece, hideTip, watchTokens} from "./tokens.js";

const turns = [];  // {prompt, element, cells, answers: Map from a column's number}
const running = new Set();  // AbortControllers

export const isRunning = () => running.size > 0;
export const hasTurns = () => turns.length > 0;

export function stopAll() {
  for (const controller of running) controller.abort();
}

// ---- what is sent

// Of an earlier turn: the column's own answer, else the first that there is.
function answerFor(turn, column) {
  const usable = (answer) => answer && answer.text !== "" && !answer.failed;
  const own = turn.answers.get(column.number);
  return usable(own) ? own : [...turn.answers.values()].find(usable);
}

function messagesFor(turn, column) {
  const messages = [];
  if (systemPrompt()) messages.push({role: "system", content: systemPrompt()});
  for (const earlier of turns.slice(0, turns.indexOf(turn))) {
    const answer = answerFor(earlier, column);
    // A turn without an answer is left out: most templates want turns to alternate.
    if (!answer) continue;
    messages.push({role: "user", content: earlier.prompt}, {role: "assistant", content: answer.text});
  }
  messages.push({role: "user", content: turn.prompt});
  return messages;
}

// ---- what is shown

function followEnd(work) {
  const view = $("scroll");
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 60;
  work();
  if (atEnd) view.scrollTop = view.scrollHeight;
}

function setRunning(controller, on) {
  if (on) running.add(controller);
  else running.delete(controller);
  $("stop").hidden = running.size === 0;
  $("send").hidden = running.size > 0;
}

function explain(error) {
  let text = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  if (!/[.!?]$/.test(text)) text += ".";
  if (error.status >= 400) text += ` (${error.status})`;
  if (error.retryAfter !== null) text += ` Try again in ${error.retryAfter} s.`;
  return text;
}

function showError(answer, error) {
  answer.failed = true;
  const words = error instanceof ApiError ? explain(error) : `This page failed: ${error.message}`;
  answer.notes.append(make("p", {class: "error", role: "alert"}, words));
  if (error.status === 401) answer.notes.append(button("Enter an API key", () => openSettings($("key"))));
}

function facts(answer) {
  const parts = [];
  if (answer.stopped) parts.push("stopped");
  if (answer.finish === "length") parts.push("cut off at the most tokens allowed");
  if (answer.finish === "abort") parts.push("ended by the server");
  if (answer.usage) parts.push(`${answer.usage.completion_tokens} tokens`);
  const seconds = (answer.ended - answer.began) / 1000;
  parts.push(seconds < 10 ? `${seconds.toFixed(2)} s` : `${Math.round(seconds)} s`);
  return parts.join(" · ");
}

async function copy(answer, from) {
  try {
    await navigator.clipboard.writeText(answer.text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not allowed here";
  }
}

function finish(turn, column, answer) {
  answer.element.classList.remove("running");
  const bar = make("div", {class: "facts"}, make("span", {class: "quiet"}, facts(answer)));
  if (turn === turns.at(-1)) {
    bar.append(button(answer.failed ? "Try again" : "Regenerate", () => {
      run(turn, column);
      $("prompt").focus();
    }, {class: "again", "aria-label": `${answer.failed ? "Try again" : "Regenerate"} (${answer.label})`}));
  }
  if (answer.text && navigator.clipboard) {
    const copier = button("Copy", () => copy(answer, copier), {"aria-label": `Copy the answer (${answer.label})`});
    bar.append(copier);
  }
  answer.notes.append(bar);
  announce(answer.failed ? "" : `${answer.label}: ${answer.text}`);
}

function newAnswer(label) {
  const textElement = make("div", {class: "text", tabindex: "0", role: "group", "aria-label": `Answer (${label})`});
  watchTokens(textElement);
  const notes = make("div", {class: "notes"});
  const element = make("article", {class: "answer running"}, make("h3", {}, label), textElement, notes);
  return {label, element, textElement, notes, text: "", finish: null, usage: null, began: performance.now(), ended: 0};
}

// ---- what is done

async function receive(answer, request, controller) {
  try {
    for await (const event of chat(request, controller.signal)) {
      answer.text += event.text;
      answer.finish = event.finish ?? answer.finish;
      answer.usage = event.usage ?? answer.usage;
      if (event.text || event.tokens.length > 0) {
        followEnd(() => appendPiece(answer, event.text, event.tokens));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else showError(answer, error);
  }
  answer.ended = performance.now();
}

// (Re)makes the answer of a column to a turn.
async function run(turn, column) {
  const fields = sampling();
  const choice = choiceOf(column);
  if (!fields) return;
  hideTip();
  const answer = newAnswer(choice?.label ?? "another adapter");
  const cell = turn.cells.get(column.number);
  followEnd(() => cell.replaceChildren(answer.element));
  turn.answers.set(column.number, answer);
  if (!choice) {
    showError(answer, new ApiError("name the adapter first"));
    answer.ended = answer.began;
    finish(turn, column, answer);
    column.other.focus();
    return;
  }
  const {label, ...which} = choice;
  const controller = new AbortController();
  setRunning(controller, true);
  await receive(answer, {...which, messages: messagesFor(turn, column), ...fields}, controller);
  setRunning(controller, false);
  followEnd(() => finish(turn, column, answer));
}

function addCell(turn, column) {
  const cell = make("div", {class: "cell"});
  turn.cells.set(column.number, cell);
  turn.grid.append(cell);
  return cell;
}

export function send(prompt) {
  if (isRunning() || prompt.trim() === "" || !sampling()) return false;
  document.querySelectorAll(".again, .empty").forEach((old) => old.remove());
  const turn = {prompt, answers: new Map(), cells: new Map(), grid: make("div", {class: "answers"})};
  turn.element = make("section", {class: "turn"}, make("h2", {class: "prompt"}, prompt), turn.grid);
  turns.push(turn);
  $("turns").append(turn.element);
  for (const column of allColumns()) {
    addCell(turn, column);
    run(turn, column);
  }
  $("scroll").scrollTop = $("scroll").scrollHeight;
  return true;
}

// A new column can answer the last prompt as well.
export function offerLast(column) {
  turns.forEach((turn) => addCell(turn, column));
  const last = turns.at(-1);
  last?.cells.get(column.number).append(
      button("Answer this here too", () => run(last, column), {class: "empty"}));
}

export function dropColumn(column) {
  for (const turn of turns) {
    turn.cells.get(column.number)?.remove();
    turn.cells.delete(column.number);
    turn.answers.delete(column.number);
  }
}

export function clear() {
  stopAll();
  hideTip();
  turns.length = 0;
  $("turns").replaceChildren();
}

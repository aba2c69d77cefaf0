// The page: puts its parts together.
import {about, currentKey} from "./api.js";
import {clear, dropColumn, hasTurns, isRunning, offerLast, send, stopAll} from "./chat.js";
import {addColumn, allColumns, unusedModel, updateKnown} from "./columns.js";
import {$, announce, button, make} from "./dom.js";
import {openSettings, setUpSettings} from "./settings.js";
import {hideTip, tipIsOpen} from "./tokens.js";

let server = null;  // what about() says
let nextLook = 0;   // of a timer

// To show what adapters do, any will do.
const anAdapter = () => server.adapters[Math.floor(server.adapters.length / 2)];

function welcome() {
  $("welcome").hidden = hasTurns();
  document.body.classList.toggle("begun", hasTurns());
}

function ask(text) {
  if (!send(text)) return;
  $("prompt").value = "";
  grow();
  welcome();
  $("prompt").focus();
}

function grow() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, innerHeight * 0.4)}px`;
}

function greet() {
  const n = server.adapters.length;
  $("model").textContent = server.base;
  $("model").title = server.base;
  $("version").textContent = server.version;
  $("docs").hidden = currentKey() !== "";  // a link brings no key
  $("greeting").textContent = "Ask the model, or one of its adapters.";
  $("about").textContent = allColumns().length > 1
      ? "Each prompt goes to every column, all at once."
      : n === 0
      ? "The server names no adapters; “another adapter…” above takes the name of one."
      : `${n === 1 ? "One adapter shares" : `${n} adapters share`} this model. Choose above who answers, or compare.`;
  const items = server.examples.map((text) => make("li", {}, button(text, () => ask(text), {class: "example"})));
  if (n > 0 && allColumns().length === 1) {
    items.push(make("li", {}, button(`Compare the base model with ${anAdapter()}`, () => {
      compare(anAdapter());
      greet();
      $("prompt").focus();
    }, {class: "example with-compare"})));
  }
  $("examples").replaceChildren(...items);
}

function unreachable(error) {
  $("greeting").textContent = error.status === 401 ? "This server asks for an API key."
      : error.status === 503 ? "The server is not ready yet." : "The server does not answer as it should.";
  $("about").textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1) + ".";
  const enter = button("Enter an API key", () => openSettings($("key")), {class: "example"});
  $("examples").replaceChildren(...(error.status === 401 ? [make("li", {}, enter)] : []));
  announce($("greeting").textContent);
}

// Asks what there is, again and again while the model is being loaded.
async function look() {
  clearTimeout(nextLook);
  try {
    server = await about();
  } catch (error) {
    if (server === null) unreachable(error);
    if (error.status === 503 || error.status === 0) nextLook = setTimeout(look, 1000);
    return;
  }
  updateKnown(server.base, server.adapters);
  greet();
}

function onColumns(removed) {
  if (removed) dropColumn(removed);
  if (server) greet();
}

function compare(model) {
  const column = addColumn(model ?? unusedModel(), onColumns);
  offerLast(column);
  return column;
}

function restart() {
  clear();
  welcome();
  look();
  $("prompt").focus();
}

function setUpKeys() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask($("prompt").value);
  });
  $("prompt").addEventListener("input", grow);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask($("prompt").value);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (tipIsOpen()) hideTip();
    else if (isRunning()) stopAll();
  });
  $("stop").addEventListener("click", () => {
    stopAll();
    $("prompt").focus();
  });
}

setUpSettings(look);
setUpKeys();
$("scroll").addEventListener("scroll", hideTip, {passive: true});
$("new").addEventListener("click", restart);
$("compare").addEventListener("click", () => {
  const column = compare();
  if (server) greet();
  column.select.focus();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && server) look();
});
addColumn(null, onColumns);
welcome();
look();

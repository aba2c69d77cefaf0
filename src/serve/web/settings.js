// The panel of settings: what it says for a request, the key, the theme.
import {currentKey, useKey} from "./api.js";
import {$} from "./dom.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

// The fields of a request. Null: one is not a number that can be; the panel shows which.
export function sampling() {
  const fields = {};
  for (const name of NUMBERS) {
    const input = $(name);
    if (!input.checkValidity()) {
      openSettings(input);
      input.reportValidity();
      return null;
    }
    if (input.value !== "") fields[name] = input.valueAsNumber;
  }
  if ($("probabilities").value !== "off") Object.assign(fields, {logprobs: true, top_logprobs: 5});
  return fields;
}

export const systemPrompt = () => $("system").value.trim();

export function openSettings(focus = $("system")) {
  $("settings").hidden = false;
  document.body.classList.add("with-settings");
  $("open-settings").setAttribute("aria-expanded", "true");
  focus.focus();
}

export function closeSettings() {
  if ($("settings").hidden) return;
  const inside = $("settings").contains(document.activeElement);
  $("settings").hidden = true;
  document.body.classList.remove("with-settings");
  $("open-settings").setAttribute("aria-expanded", "false");
  if (inside) $("open-settings").focus();
}

function switchTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("lorry-theme", root.dataset.theme);
  } catch {
  }
}

// `onKey`: called when another key is there.
export function setUpSettings(onKey) {
  $("theme").addEventListener("click", switchTheme);
  $("open-settings").addEventListener("click", () => ($("settings").hidden ? openSettings() : closeSettings()));
  $("close-settings").addEventListener("click", closeSettings);
  $("settings").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  $("settings").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    closeSettings();
  });
  const tint = () => document.body.classList.toggle("tinted", $("probabilities").value === "tint");
  $("probabilities").addEventListener("change", tint);
  tint();
  $("key").value = currentKey();
  $("key").addEventListener("change", () => {
    useKey($("key").value);
    onKey();
  });
}

"use strict";

/* The page is complete without this. It copies, filters, shows times in the reader's time zone and keeps itself current:
   progress.json says how far a sync is; when the state or the page changes, the page is fetched and its changed parts
   are put in place of the old ones, so that nothing jumps and no text that somebody types is lost. */

const PLACE = "/_clr/";
const BUSY_MS = 2000;
const IDLE_MS = 10000;
const FILTER_FROM = 30;
const PHONE = matchMedia("(max-width: 44rem)");
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };

const find = (id) => document.getElementById(id);
const main = () => document.querySelector("main");
const two = (number) => String(number).padStart(2, "0");

const parts = new Map();
let mark = null;
let told = "";
let lost = false;

function size(count) {
  const units = ["B", "kB", "MB", "GB"];
  for (const unit of units) {
    if (Math.abs(count) < 999.95) return `${unit === "B" ? count.toFixed(0) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

function span(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

function near(moment) {
  const seconds = (moment - Date.now()) / 1000;
  const away = Math.abs(seconds);
  const [unit, length] = away < 3600 ? ["minute", 60] : away < 172800 ? ["hour", 3600] : ["day", 86400];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(Math.round(seconds / length), unit);
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
    if (!time.title) time.title = time.textContent;
    time.textContent = `${day} ${two(moment.getHours())}:${two(moment.getMinutes())}`;
    if ("near" in time.dataset) {
      const note = document.createElement("span");
      note.className = "near";
      note.textContent = near(moment);
      time.after(note);
    }
  }
}

function renewNear() {
  for (const time of document.querySelectorAll("time[data-near]")) {
    const note = time.nextElementSibling;
    if (note?.className === "near") note.textContent = near(new Date(time.dateTime));
  }
}

async function copy(from) {
  try {
    await navigator.clipboard.writeText(from.textContent);
  } catch {
    // Over plain HTTP there is no clipboard, but this.
    const selection = getSelection();
    selection.selectAllChildren(from);
    if (!document.execCommand("copy")) throw new Error("not copied");
    selection.removeAllRanges();
  }
}

function copyButtons(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    const label = button.firstChild;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const from = find(button.dataset.copy);
      try {
        await copy(from);
        label.data = "Copied";
        say("Copied");
      } catch {
        label.data = "Selected";
        say("Could not be copied; it is selected");
      }
      setTimeout(() => { label.data = "Copy"; }, 2000);
    });
  }
}

function address(root) {
  const url = root.querySelector("#url");
  if (url?.textContent.includes("<")) url.textContent = `${location.origin}/lib.json`;
}

function filter(root) {
  const place = root.querySelector("#filter");
  const rows = [...root.querySelectorAll("#items tbody tr")];
  if (!place || rows.length <= FILTER_FROM) return;
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  label.textContent = "Filter by name";
  label.htmlFor = input.id = "wanted";
  input.type = "search";
  input.autocomplete = "off";
  input.spellcheck = false;
  count.className = "quiet";
  count.setAttribute("role", "status");
  const names = rows.map((row) => row.cells[0].textContent.toLowerCase());
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, at) => {
      row.hidden = !names[at].includes(wanted);
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
  place.replaceChildren(label, input, count);
}

/* On a phone each row becomes a block, by which some browsers forget that it is a table. */
function roles(root) {
  if (!PHONE.matches) return;
  for (const table of root.querySelectorAll("table.folding")) {
    for (const element of [table, ...table.querySelectorAll("thead, tbody, tr, td, th")]) {
      const role = element.tagName === "TH" ? (element.scope === "row" ? "rowheader" : "columnheader") : ROLES[element.tagName];
      element.setAttribute("role", role);
    }
  }
}

function improve(root) {
  address(root);
  localTimes(root);
  copyButtons(root);
  filter(root);
  roles(root);
}

/* A screen reader says it when it has nothing else to say. */
function say(text) {
  if (text !== told) find("news").textContent = told = text;
}

function put(id, text) {
  const element = find(id);
  if (element && element.textContent !== text) element.textContent = text;
}

function showProgress(running) {
  const bar = find("bar");
  if (!bar) return;
  const total = running.total_bytes;
  const percent = total ? Math.min(100, Math.floor((100 * running.done_bytes) / total)) : 0;
  if (total) bar.value = Math.min(100, (100 * running.done_bytes) / total);
  else bar.removeAttribute("value");
  put("percent", total ? `${percent} %` : "");
  put("stage", running.stage);
  put("done", total ? `${size(running.done_bytes)} of ${size(total)}` : "");
  put("rate", running.rate ? `${size(running.rate)}/s` : "");
  put("left", running.left_seconds === null ? "" : `${span(running.left_seconds)} left`);
  put("file", running.file ?? "");
  say(total ? `${running.stage}: ${percent - (percent % 10)} %` : running.stage);
}

const partsOf = (page) => [...page.querySelectorAll("header, main > section, .pair > section")];

function remember(page) {
  parts.clear();
  for (const part of partsOf(page)) parts.set(part.id, part.outerHTML);
}

async function renew() {
  const answer = await fetch(PLACE, { cache: "no-cache" });
  if (!answer.ok) throw new Error(answer.statusText);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.querySelector("main");
  if (!fresh) throw new Error("not the page");
  const before = new Map(parts);
  const ids = partsOf(page).map((part) => part.id);
  remember(page);
  const wanted = find("wanted")?.value ?? "";
  const wasOpen = document.querySelector("details")?.open ?? false;
  const focused = document.activeElement?.id || document.activeElement?.dataset.copy;
  if (ids.join() === [...before.keys()].join()) {
    for (const id of ids) {
      if (parts.get(id) === before.get(id)) continue;
      const part = document.adoptNode(page.getElementById(id));
      find(id).replaceWith(part);
      improve(part);
    }
    main().dataset.state = fresh.dataset.state;
  } else {
    find("top").replaceWith(document.adoptNode(page.getElementById("top")));
    main().replaceWith(document.adoptNode(fresh));
    improve(main());
  }
  document.title = page.title;
  const input = find("wanted");
  if (input && input.value !== wanted) {
    input.value = wanted;
    input.dispatchEvent(new Event("input"));
  }
  const details = document.querySelector("details");
  if (details) details.open = wasOpen;
  if (focused && document.activeElement === document.body) {
    (find(focused) ?? document.querySelector(`[data-copy="${CSS.escape(focused)}"]`))?.focus({ preventScroll: true });
  }
}

async function look() {
  const answer = await fetch(`${PLACE}progress.json`, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  const now = await answer.json();
  const changed = now.page !== mark && mark !== null && !now.running;
  if (now.state !== main().dataset.state || changed) {
    await renew();
    if (now.state === main().dataset.state && now.state !== "syncing") say(find("state").querySelector(".told").innerText);
  }
  mark = now.page;
  if (now.running) showProgress(now.running);
}

async function watch() {
  if (!document.hidden) {
    try {
      await look();
      if (lost) put("zone", zone());
      lost = false;
    } catch {
      if (!lost) put("zone", `This page has lost its site; it shows what it last knew. ${zone()}`);
      if (!lost) say("This page has lost its site; it shows what it last knew.");
      lost = true;
    }
    renewNear();
  }
  setTimeout(watch, main().dataset.state === "syncing" ? BUSY_MS : IDLE_MS);
}

const zone = () => `Times are in your time zone, ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;

remember(document);
improve(document);
put("zone", zone());
PHONE.addEventListener("change", () => roles(document));
setTimeout(watch, main().dataset.state === "syncing" ? BUSY_MS : IDLE_MS);

// The page: sends scans one by one to /api/predict, shows what comes back, and makes the table. No library.
import { beside, json, make, percent, probabilities, send, sentence } from "./common.js";
import { bodyOf, grouped, sizeOf, titleOf } from "./together.js";
import { askUnit, askVolume, forget, looksLikeVolume } from "./volume.js";

const TOGETHER = 2; // the server answers one at a time; the second waits there already
const $ = (id) => document.getElementById(id);
const rows = []; // a file each: {name, state: "waiting" | "done" | "failed", answer, error, card}; of a volume also volumes
let model = null;
let running = 0;
const queue = [];

const megabytes = (n) => `${Math.round((10 * n) / 1048576) / 10} MB`;

async function about() {
  if (!model) {
    const response = await fetch("api/model");
    if (!response.ok) throw new Error();
    model = await response.json();
  }
  return model;
}

async function add(files) {
  const chosen = [...files];
  if (!chosen.length) return;
  $("section").hidden = false;
  // So that the first scan and its heat map stand where one looks.
  $("drop").classList.add("small-drop");
  try {
    await about();
  } catch {
    $("status").textContent = "octfast does not answer. Is it still running?";
    return;
  }
  const given = await grouped(chosen);
  const taken = given.slice(0, model.max_files);
  const unit = model.level !== "scan" && $("together").checked ? await picturesOf(taken) : [];
  if (unit.length > 1) addUnit(unit.map(([file]) => file));
  for (const group of unit.length > 1 ? taken.filter((g) => !unit.includes(g)) : taken) {
    const row = { name: titleOf(group), state: "waiting", card: make("li", { class: "card" }) };
    rows.push(row);
    $("results").append(row.card);
    draw(row);
    if (sizeOf(group) > model.max_bytes) {
      const volume = group.length > 1 || model.volume_endings.some((e) => row.name.toLowerCase().endsWith(e));
      const hint = volume ? "octfast app --max-mb takes larger ones, and octfast predict takes any" : "save it smaller, as PNG or JPEG";
      fail(row, `${group.length > 1 ? "they are" : "the file is"} ${megabytes(sizeOf(group))} large, and ${megabytes(model.max_bytes)} are taken`, hint);
    } else {
      queue.push([row, group]);
    }
  }
  if (given.length > taken.length) {
    const row = { name: `${given.length - taken.length} more files`, card: make("li", { class: "card" }), skipped: true };
    rows.push(row);
    $("results").append(row.card);
    fail(row, `${given.length} files at once, and ${model.max_files} are taken`, "add the others when these are done");
  }
  say();
  work();
}

async function picturesOf(groups) {
  const volumes = await Promise.all(groups.map(async (g) => g.length > 1 || looksLikeVolume(g[0], model)));
  return groups.filter((g, i) => !volumes[i]);
}

// Pictures that have one answer together.
function addUnit(files) {
  const row = { name: `${files.length} pictures, one ${model.level}`, state: "waiting", card: make("li", { class: "card" }), files };
  rows.push(row);
  $("results").append(row.card);
  draw(row);
  const size = files.reduce((n, f) => n + f.size, 0);
  if (size > model.max_bytes) {
    fail(row, `the pictures are ${megabytes(size)} large together, and ${megabytes(model.max_bytes)} are taken`, "octfast app --max-mb takes more, and octfast predict takes any");
  } else {
    queue.push([row, null]);
  }
}

function work() {
  while (running < TOGETHER && queue.length) {
    const [row, group] = queue.shift();
    running += 1;
    ask(row, group).finally(() => {
      running -= 1;
      say();
      work();
    });
  }
}

async function ask(row, group) {
  const page = { fail, draw, say, closed: () => !rows.includes(row) };
  if (row.files) {
    await askUnit(row, model, page);
    return;
  }
  const file = group[0];
  if (group.length > 1 || (await looksLikeVolume(file, model))) {
    const taken = await askVolume(row, bodyOf(group), file.name, model, page);
    if (taken) return;
  }
  const { response, error, hint } = await send("api/predict?heatmap=1", file);
  if (!response) {
    fail(row, error, hint);
    return;
  }
  const answer = await json(response);
  if (response.ok && !answer.error) {
    row.state = "done";
    row.answer = answer;
    draw(row);
  } else {
    fail(row, answer.error, answer.hint);
  }
}

function fail(row, error, hint) {
  row.state = "failed";
  row.error = error;
  row.hint = hint;
  draw(row);
}

function draw(row) {
  if (row.volumes && row.state !== "failed") return; // it draws itself
  const heading = make("h3", {}, row.name);
  row.card.className = "card";
  if (row.state === "waiting") {
    row.card.replaceChildren(heading, make("p", { class: "small" }, "waiting …"));
  } else if (row.state === "failed") {
    const hint = row.hint ? `What to do: ${row.hint}.` : "";
    row.card.replaceChildren(heading, make("p", { class: "problem" }, `Not read: ${row.error}.`), make("p", { class: "small" }, hint));
  } else {
    drawAnswer(row, heading);
  }
}

function drawAnswer(row, heading) {
  const a = row.answer;
  row.card.classList.toggle("urgent", a.referred === true);
  row.card.classList.toggle("unlike", a.unlike_training === true);
  const badges = make("div");
  if (a.unlike_training) badges.append(make("span", { class: "badge unsure" }, "Unlike training"));
  if (a.referred) badges.append(make("span", { class: "badge urgent" }, "Refer urgently"));
  if (a.abstained) badges.append(make("span", { class: "badge unsure" }, "Not sure"));
  const said = a.predicted === null ? [make("strong", {}, "No class")] : [make("strong", {}, a.predicted), ` ${percent(a.probability)}`];
  const words = make("div", {}, heading, badges);
  if (a.unlike_training) {
    const anyway = a.predicted === null ? "" : " A class is given as this page was started so; it may mean nothing.";
    words.append(make("p", { class: "far" }, `${sentence(a.unlike_reason)}.${anyway} Let a person decide.`));
  }
  words.append(make("p", { class: "said" }, ...said));
  if (a.note) words.append(make("p", {}, `${a.note}: the model answers for a whole ${a.level}, and the others were not given.`));
  if (a.abstained) {
    const could = a.possible && a.possible.length > 1 ? `It could be ${a.possible.join(" or ")}. ` : "";
    words.append(make("p", {}, `${could}Let a person decide.`));
  }
  if (a.referred && !model.urgent_classes.includes(a.predicted)) {
    words.append(make("p", {}, `Referred, as ${model.urgent_classes.join(" and ")} have ${percent(a.urgent_score)} together.`));
  }
  for (const remark of a.remarks || []) words.append(make("p", { class: "remark" }, `Of the picture: ${remark}.`));
  const table = probabilities(a);
  if (table) words.append(table);
  const picture = make("img", { width: a.width, height: a.height });
  const text = make("span");
  const toggle = make("button", { type: "button", class: "plain" }, "Heat map", make("span", { class: "hidden" }, ` of ${row.name}`));
  row.show = (heat) => {
    const on = heat && Boolean(a.heat_map);
    picture.src = on ? a.heat_map : a.picture;
    picture.alt = on
      ? `Heat map over ${row.name}: what raised the score of ${a.heat_map_of}; ${model.heat_map_caution}.`
      : `B-scan ${row.name}, ${a.width} by ${a.height} pixels.`;
    text.textContent = a.heat_map
      ? on
        ? `Raised the score of ${a.heat_map_of}; ${model.heat_map_caution}${a.heat_map_note ? `; ${a.heat_map_note}` : ""}`
        : `${a.width} x ${a.height} pixels`
      : `No heat map: ${a.heat_map_reason}`;
    toggle.setAttribute("aria-pressed", String(on));
    row.heat = on;
  };
  toggle.hidden = !a.heat_map;
  toggle.addEventListener("click", () => row.show(!row.heat));
  const figure = make("figure", {}, picture, make("figcaption", {}, text, toggle));
  row.card.replaceChildren(...[make("div", { class: "two" }, figure, words), beside(a.similar)].filter(Boolean));
  row.show($("heat").checked);
}

function say() {
  const scans = rows.filter((r) => !r.skipped);
  const done = scans.filter((r) => r.state === "done");
  const failed = scans.filter((r) => r.state === "failed");
  const unlike = done.filter((r) => r.answer.unlike_training);
  const referred = done.filter((r) => r.answer.referred);
  const noun = scans.some((r) => r.volumes) ? "file" : "scan";
  const parts = [`${done.length} of ${scans.length} ${noun}${scans.length === 1 ? "" : "s"} answered`];
  if (referred.length) parts.push(`${referred.length} to refer urgently`);
  if (unlike.length) parts.push(`${unlike.length} unlike the training scans`);
  if (failed.length) parts.push(`${failed.length} could not be read`);
  $("status").textContent = `${parts.join(", ")}.`;
  $("section").setAttribute("aria-busy", String(done.length + failed.length < scans.length));
  $("save").disabled = !scans.length;
  sort();
}

function sort() {
  const rank = (r) => (r.answer && r.answer.referred ? -1 - r.answer.urgent_score : 0);
  const wanted = $("urgent-first").checked ? [...rows].sort((a, b) => rank(a) - rank(b)) : rows;
  const shown = [...$("results").children];
  if (wanted.some((r, i) => shown[i] !== r.card)) $("results").append(...wanted.map((r) => r.card));
}

// A cell that begins with one of these would be run as a formula by a spreadsheet.
function cell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const unit = model.level !== "scan";
  const counted = unit ? ["level", "scans", "attention", ...model.classes.map((c) => `alone_${c}`)] : [];
  const head = ["file", "volume", "frame", "eye", "predicted", "probability", "abstained", "urgent_score", "referred", "unlike_training", "distance", ...model.classes.map((c) => `p_${c}`), ...counted, "calibrated", "remarks", "error", "notice"];
  const notice = [model.notice, model.synthetic].filter(Boolean).join(" ");
  // Of a volume that has an answer as a whole this, and then its scans, which have none of their own.
  const inside = (r) => r.volumes.flatMap((v) => [
    ...(unit && v.answer ? [{ name: r.name, answer: v.answer }] : []),
    ...v.frames.map((f) => ({ name: f.name ?? r.name, answer: f, error: f.error })),
  ]);
  const lines = rows
    .filter((r) => !r.skipped && r.state !== "waiting")
    .flatMap((r) => (r.volumes ? inside(r) : [r]))
    .map((r) => {
      const a = r.answer || {};
      const each = (p) => model.classes.map((c) => (p ? p[c] : null));
      const scan = typeof a.attention === "number" ? a.attention : null;
      const more = unit ? [a.level, a.scans, scan, ...each(a.alone)] : [];
      return [r.name, a.volume, a.frame, a.eye, a.predicted, a.probability, a.abstained, a.urgent_score, a.referred, a.unlike_training, a.distance, ...each(a.probabilities), ...more, a.calibrated, [a.note, a.unlike_reason, ...(a.remarks || [])].filter(Boolean).join("; "), r.error, notice];
    });
  return [head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

$("save").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob(["\ufeff", table()], { type: "text/csv" }));
  const link = make("a", { href: address, download: "octfast.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});
$("clear").addEventListener("click", () => {
  rows.forEach(forget);
  rows.length = 0;
  queue.length = 0;
  $("results").replaceChildren();
  $("status").textContent = "Cleared.";
  $("section").hidden = true;
  $("drop").classList.remove("small-drop");
  $("files").focus();
});
$("heat").addEventListener("change", () => rows.forEach((r) => r.show && r.show($("heat").checked)));
$("urgent-first").addEventListener("change", sort);
$("form").addEventListener("submit", (e) => e.preventDefault());
$("files").addEventListener("change", () => {
  add($("files").files);
  $("files").value = ""; // not the form, whose box stays as it was set
});
for (const kind of ["dragenter", "dragover"]) {
  window.addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  window.addEventListener(kind, (e) => {
    e.preventDefault();
    if (kind === "drop" || !e.relatedTarget) $("drop").classList.remove("over");
  });
}
window.addEventListener("drop", (e) => add(e.dataTransfer.files));
document.querySelectorAll(".origin").forEach((n) => { n.textContent = new URL(".", location.href).href.replace(/\/$/, ""); });

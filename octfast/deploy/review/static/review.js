// The page of a review: one scan at a time, a decision a key, kept by octfast at once. No library.
const $ = (id) => document.getElementById(id);
let list = null; // what /api/list gave
let items = []; // its scans
let shown = []; // ids of those that the choice of kind leaves
let at = 0; // position in `shown`
let of = 0; // which scan of a unit is shown, by how much it counted
let busy = false;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const percent = (p) => `${(100 * p).toFixed(p < 0.1 || p > 0.9 ? 1 : 0)}%`;
const noun = () => (list.level === "scan" ? "scan" : list.level);
const current = () => items[shown[at]];

async function ask(path, body) {
  let response;
  try {
    const sent = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body ?? {}) };
    response = await fetch(path, body === undefined ? {} : sent);
  } catch {
    throw new Error("octfast does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: "octfast gave no answer that can be read" }));
  if (!response.ok) throw new Error([answer.error, answer.hint].filter(Boolean).join(": "));
  return answer;
}

function words(item) {
  if (item.decision === "relabel" && list.labelling) return `You: ${item.new}`;
  if (item.decision === "relabel") return `You: ${item.new} instead of ${item.label}`;
  if (item.decision === "leave out") return "You: left out";
  return item.decision === "agree" ? `You: ${item.label} is right` : "";
}

function draw() {
  const item = current();
  of = 0;
  $("scan").hidden = !item;
  count();
  if (!item) return;
  $("name").textContent = item.name;
  $("label").textContent = item.label;
  $("caption").textContent = `${at + 1} of ${shown.length}, patient ${item.patient}${list.level === "scan" ? "" : `, ${item.scans} scans`}`;
  $("model").textContent = list.blind ? "" : `The model says ${item.predicted} (${percent(item.p[item.predicted])})${item.label ? `; ${item.label}: ${percent(item.p[item.label])}` : ""}`;
  const reasons = list.blind ? [] : [...item.reasons, ...(item.related ? [`compare with ${item.related}`] : [])];
  $("reasons").replaceChildren(...reasons.map((r) => make("li", {}, r)));
  $("decision").textContent = words(item);
  const chosen = item.decision === "relabel" ? item.new : item.decision === "agree" ? item.label : null;
  for (const button of $("classes").children) button.setAttribute("aria-pressed", String(button.dataset.name === chosen));
  $("previous").disabled = at === 0;
  $("next").disabled = at === shown.length - 1;
  picture();
  counted(item);
  beside(item);
  const next = items[shown[at + 1]];
  if (next) new Image().src = `api/scan/${next.id}`;
}

function picture() {
  const item = current();
  if (!item) return;
  const heat = $("heat").checked && !list.blind;
  const one = item.counted ? item.counted[of] : { name: item.name };
  $("picture").src = `api/${heat ? "heat" : "scan"}/${item.id}${of ? `?of=${of}` : ""}`;
  $("picture").alt = `${heat ? "Heat map of" : "B-scan"} ${one.name}`;
  for (const button of $("counted").querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.of) === of));
}

// The scans of a unit that counted most, each to be looked at.
function counted(item) {
  const scans = item.counted || [];
  $("counted").hidden = scans.length < 2;
  $("counted").replaceChildren(...scans.map((scan, i) => {
    const button = make("button", { type: "button", class: "plain", "data-of": i, title: scan.name, "aria-pressed": String(i === of) },
      make("img", { src: `api/scan/${item.id}?of=${i}&small=1`, alt: `B-scan ${scan.name}` }), `counts ${percent(scan.share)}`);
    button.addEventListener("click", () => {
      of = i;
      picture();
    });
    return make("li", {}, button);
  }));
}

// The nearest scans come a little later, and only while their scan is still looked at.
async function beside(item) {
  if (list.blind) return;
  $("near").replaceChildren();
  await new Promise((done) => setTimeout(done, 250));
  if (current() !== item) return;
  const found = await ask(`api/near/${item.id}`).catch(() => []);
  if (current() !== item) return;
  $("near-section").hidden = !found.length;
  const cards = found.map((f, i) => make("li", {}, make("figure", {},
    make("img", { src: `api/near/${item.id}/${i}`, alt: `B-scan ${f.name}` }),
    make("figcaption", {}, make("strong", {}, f.label), make("span", {}, `${f.name}, distance ${f.distance.toFixed(2)}`)))));
  $("near").replaceChildren(...cards);
}

function count() {
  const done = items.filter((i) => i.decision);
  const of = (what) => done.filter((i) => i.decision === what).length;
  const more = list.total > items.length ? ` (the first ${items.length} of ${list.total})` : "";
  $("progress").textContent = list.labelling
    ? `${done.length} of ${items.length} ${noun()}s decided${more}: ${of("relabel")} labelled, ${of("leave out")} left out`
    : `${done.length} of ${items.length} ${noun()}s decided${more}: ${of("relabel")} relabelled, ${of("leave out")} left out, ${of("agree")} right`;
}

function go(step) {
  at = Math.max(0, Math.min(shown.length - 1, at + step));
  $("problem").textContent = "";
  draw();
}

async function decide(decision, name = "") {
  const item = current();
  if (!item || busy) return;
  busy = true;
  $("problem").textContent = "";
  try {
    Object.assign(items[item.id], await ask("api/decide", { id: item.id, decision, new: name }));
    const rest = shown.findIndex((id, i) => i > at && !items[id].decision);
    const any = rest >= 0 ? rest : shown.findIndex((id) => !items[id].decision);
    if (any >= 0) at = any;
    draw();
    if (any < 0) $("decision").textContent += `. All ${noun()}s of the list are decided.`;
  } catch (error) {
    $("problem").textContent = error.message;
  } finally {
    busy = false;
  }
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const item = await ask("api/undo", {});
    if (item.id === null) {
      $("problem").textContent = "There is nothing to undo.";
      return;
    }
    Object.assign(items[item.id], item);
    if (!shown.includes(item.id)) choose("");
    at = shown.indexOf(item.id);
    draw();
  } catch (error) {
    $("problem").textContent = error.message;
  } finally {
    busy = false;
  }
}

function figures(found) {
  const digits = { log_loss: 3, accuracy: 3 };
  const names = { log_loss: "log-loss (lower is better)", accuracy: "accuracy (higher is better)" };
  const rows = Object.entries(found.figures).map(([key, f]) => {
    const n = (v) => v.toFixed(digits[key]);
    const signed = (v) => (v > 0 ? "+" : "") + n(v);
    return make("tr", {}, make("th", { scope: "row" }, names[key]), make("td", {}, n(f.before)), make("td", {}, n(f.after)),
      make("td", {}, `${signed(f.difference)} [${signed(f.low)}, ${signed(f.high)}]`));
  });
  const head = ["figure", "before", "after", "difference, 95% interval by patients"].map((h) => make("th", { scope: "col" }, h));
  const caption = `Out of fold, on the ${found.scans} ${noun()}s of ${found.patients} patients whose labels nobody changed`;
  return make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

async function train() {
  if ($("train").disabled) return;
  $("train").disabled = true;
  $("trained").textContent = "Training again ...";
  try {
    const found = await ask("api/train", {});
    $("figures").replaceChildren(figures(found));
    const differ = found.differing ? `; ${found.differing} ${noun()}s where the reviewers differ were left as they are` : "";
    $("trained").textContent = `Relabelled: ${found.relabelled}, left out: ${found.left_out}${differ}. Trained in ${found.seconds.toFixed(1)} s.`;
  } catch (error) {
    $("trained").textContent = error.message;
  } finally {
    $("train").disabled = false;
  }
}

async function agreement() {
  try {
    const found = await ask("api/agreement");
    const kappa = found.kappa === null ? "" : `, Cohen's kappa ${found.kappa.toFixed(2)}`;
    const [a, b] = found.reviewers;
    const rows = found.differing.map((d) => make("tr", {}, ...[d.path, d.old, d[a], d[b]].map((v) => make("td", {}, v))));
    const head = ["scan", "label", a, b].map((h) => make("th", { scope: "col" }, h));
    $("figures").replaceChildren(make("table", {}, make("caption", {}, "Where the reviewers differ"),
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
    $("trained").textContent = `${a} and ${b} agree on ${found.same} of ${found.scans} ${noun()}s${kappa}.`;
  } catch (error) {
    $("trained").textContent = error.message;
  }
}

function choose(kind) {
  $("kind").value = kind;
  shown = items.filter((i) => !kind || i.kind === kind).map((i) => i.id);
  at = Math.max(0, shown.findIndex((id) => !items[id].decision));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !list) return;
  if (["SELECT", "INPUT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
  const press = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), x: () => decide("leave out"), u: undo };
  if (!list.labelling) press.t = train;
  if (event.key === " " && !["BUTTON", "SUMMARY", "INPUT"].includes(event.target.tagName)) {
    event.preventDefault();
    if (!list.labelling) decide("agree");
  } else if (/^[1-9]$/.test(event.key) && list.classes[event.key - 1] !== undefined) {
    decide("relabel", list.classes[event.key - 1]);
  } else if (event.key === "h" && !list.blind) {
    $("heat").checked = !$("heat").checked;
    picture();
  } else if (press[event.key]) {
    event.preventDefault();
    press[event.key]();
  }
});

$("picture").addEventListener("error", async () => {
  const response = await fetch($("picture").src).catch(() => null);
  const answer = response && !response.ok ? await response.json().catch(() => null) : null;
  $("problem").textContent = answer ? [answer.error, answer.hint].filter(Boolean).join(": ") : "The picture cannot be shown.";
});
$("previous").addEventListener("click", () => go(-1));
$("next").addEventListener("click", () => go(1));
$("agree").addEventListener("click", () => decide("agree"));
$("out").addEventListener("click", () => decide("leave out"));
$("undo").addEventListener("click", undo);
$("heat").addEventListener("change", picture);
$("train").addEventListener("click", train);
$("agreement").addEventListener("click", agreement);
$("kind").addEventListener("change", () => {
  choose($("kind").value);
  draw();
});

try {
  list = await ask("api/list");
  items = list.items;
  list.classes.forEach((name, i) => {
    const button = make("button", { type: "button", "data-name": name, "aria-pressed": "false" }, i < 9 ? `${i + 1}  ${name}` : name);
    button.addEventListener("click", () => decide("relabel", name));
    $("classes").append(button);
  });
  $("command").textContent = list.command;
  if (list.labelling) {
    for (const node of [$("labelled"), $("agree"), $("again-section"), ...document.querySelectorAll(".of-labels")]) node.hidden = true;
    $("choose").textContent = "What is the label?";
    document.title = "octfast: labels";
  }
  $("heat-switch").hidden = list.blind;
  $("heat-switch").title = list.caution;
  $("agreement").hidden = !list.second;
  const kinds = [...new Set(items.map((i) => i.kind).filter(Boolean))];
  $("kinds").hidden = kinds.length < 2;
  for (const kind of kinds) $("kind").append(make("option", { value: kind }, kind.replaceAll("-", " ")));
  choose("");
  draw();
} catch (error) {
  $("progress").textContent = error.message;
}

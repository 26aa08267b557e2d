// A volume on the page: its B-scans by slider, keys and buttons, a curve of their scores, and where they lie on the eye.
import { beside, json, make, percent, probabilities, send, sentence } from "./common.js";

const SUSPICIOUS = 5; // B-scans that are offered
const MARKS = ["HSF-OCT", "CMDb", "E2EMultipleVolumeFile", "FOCT"];
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  return node;
}

const called = (f) => (f.name === undefined ? `B-scan ${f.frame}` : `Picture ${f.frame + 1}`);
const bscans = (n) => `${n} B-scan${n === 1 ? "" : "s"}`;
const EYES = { R: "right eye", L: "left eye" };

// Whether a file may be a volume, by its ending or its first bytes; the server knows whether a TIFF has several pages.
export async function looksLikeVolume(file, model) {
  const name = file.name.toLowerCase();
  if ([...model.volume_endings, ".tif", ".tiff"].some((e) => name.endsWith(e))) return true;
  try {
    const head = new TextDecoder("latin1").decode(await file.slice(0, 132).arrayBuffer());
    return head.slice(128) === "DICM" || MARKS.some((m) => head.startsWith(m));
  } catch {
    return false; // it is gone, which sending it says
  }
}

// Ask about a volume and show it as its B-scans come; false where the file is a picture after all.
export async function askVolume(row, body, name, model, page) {
  row.stop = new AbortController();
  const address = `api/volume?pictures=1&name=${encodeURIComponent(name)}`;
  const { response, error, hint, gone } = await send(address, body, row.stop.signal);
  if (gone) return true;
  if (!response) {
    page.fail(row, error, hint);
    return true;
  }
  if (!response.ok) {
    if (response.status === 415 && /\.tiff?$/i.test(name)) return false;
    const said = await json(response);
    page.fail(row, said.error, said.hint);
    return true;
  }
  await showLines(row, response, model, page);
  return true;
}

// Ask about the pictures of a row as one unit, and show it as its scans come.
export async function askUnit(row, model, page) {
  row.stop = new AbortController();
  const form = new FormData();
  for (const file of row.files) form.append("file", file);
  const { response, error, hint, gone } = await send("api/unit?pictures=1", form, row.stop.signal);
  if (gone) return;
  const said = response && !response.ok ? await json(response) : { error, hint };
  if (!response || !response.ok) page.fail(row, said.error, said.hint);
  else await showLines(row, response, model, page);
}

async function showLines(row, response, model, page) {
  row.volumes = [];
  row.show = (heat) => row.volumes.forEach((v) => v.toggle(heat));
  let end = null;
  try {
    for await (const line of lines(response)) {
      if (page.closed()) break;
      if (line.about) row.volumes.push(new Viewer(row, line.about, model));
      else if (line.end) end = line;
      else row.volumes[row.volumes.length - 1].add(line);
      show(row, end);
    }
  } catch {
    // It broke off; what came is shown.
  }
  if (page.closed()) return;
  const whole = end || { volumes: [], error: "octfast broke off before the end of the volume", hint: "give it again" };
  for (const said of whole.volumes) {
    const viewer = row.volumes.find((v) => v.about.volume === said.volume);
    if (viewer) viewer.finish(said);
  }
  const scores = whole.volumes.map((v) => v.urgent_score || 0);
  row.answer = { referred: whole.volumes.some((v) => v.referred), urgent_score: Math.max(0, ...scores) };
  if (model.level !== "scan") row.answer.unlike_training = whole.volumes.some((v) => v.unlike_training);
  row.state = "done";
  show(row, whole);
}

async function* lines(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    held += decoder.decode(value, { stream: !done });
    const parts = held.split("\n");
    held = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
    if (done) return;
  }
}

// Let go of the pictures of a file, and stop asking about it.
export function forget(row) {
  if (row.stop) row.stop.abort();
  for (const viewer of row.volumes || []) viewer.forget();
}

function show(row, end) {
  row.card.className = "card volume";
  row.card.classList.toggle("urgent", Boolean(row.answer && row.answer.referred));
  if (row.card.firstChild && row.card.firstChild.dataset && row.card.firstChild.dataset.volumes === String(row.volumes.length)) {
    if (!end) return;
  } else {
    const parts = [make("h3", { "data-volumes": row.volumes.length }, row.name), make("div", { class: "trouble" })];
    row.card.replaceChildren(...parts, ...row.volumes.map((v) => v.node));
  }
  if (end && end.error) {
    const words = make("p", { class: "problem" }, `Not read to its end: ${end.error}.`);
    row.card.querySelector(".trouble").replaceChildren(words, make("p", { class: "small" }, `What to do: ${end.hint}.`));
  }
}

// One volume of a file.
class Viewer {
  constructor(row, about, model) {
    // Of a model that answers for a whole unit: a scan counts, and has no answer of its own.
    const unit = model.level !== "scan";
    Object.assign(this, { row, about, model, unit, frames: [], at: 0, answer: null, heat: false, drawn: false });
    this.build();
  }

  build() {
    const { about, row } = this;
    const eye = EYES[about.eye] || "eye not said";
    const device = [about.maker, about.device].filter(Boolean).join(" ");
    const spacing = [["depth", about.axial_um], ["across", about.lateral_um], ["between B-scans", about.between_um]]
      .filter(([, um]) => um !== null)
      .map(([what, um]) => `${Number(um.toFixed(1))} µm ${what}`);
    this.said = make("div", { class: "answer" }, make("p", { class: "said" }, "reading …"));
    this.picture = make("img", { alt: "" });
    this.words = make("div", { class: "frame", "aria-live": "polite" });
    this.range = make("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": `B-scan of ${row.name}` });
    this.buttons = {};
    const button = (name, text, label, act) => {
      this.buttons[name] = make("button", { type: "button", class: "plain", "aria-label": `${label} of ${row.name}`, title: label }, text);
      this.buttons[name].addEventListener("click", act);
      return this.buttons[name];
    };
    const steps = make(
      "div",
      { class: "steps", role: "group", "aria-label": `Go through ${row.name}` },
      button("first", "|◀", "First B-scan", () => this.go(0)),
      button("back", "◀", "B-scan before", () => this.go(this.at - 1)),
      button("next", "▶", "Next B-scan", () => this.go(this.at + 1)),
      button("last", "▶|", "Last B-scan", () => this.go(this.frames.length - 1)),
      this.unit ? button("worst", "Next that counts", "Next of the scans that count most", () => this.next()) : button("worst", "Next suspicious", "Next of the most suspicious B-scans", () => this.next()),
      button("map", "Heat map", "Heat map of the shown B-scan", () => this.toggle()),
    );
    this.buttons.map.setAttribute("aria-pressed", "false");
    this.choice = make("select");
    const urgent = this.unit ? [] : this.model.urgent_classes;
    if (this.unit) this.choice.append(make("option", { value: "" }, "how much a scan counts"), ...this.model.classes.map((c) => make("option", { value: c }, `${c}, each scan alone`)));
    if (urgent.length) this.choice.append(make("option", { value: "" }, urgent.length > 1 ? `${urgent.join(" and ")} together` : urgent[0]));
    for (const name of this.unit ? [] : this.model.classes) if (urgent.length !== 1 || name !== urgent[0]) this.choice.append(make("option", { value: name }, name));
    this.choice.value = this.unit || urgent.length ? "" : this.model.classes[0];
    this.curve = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", class: "curve", role: "img" });
    this.legend = make("p", { class: "small" });
    const scale = make("div", { class: "scale", "aria-hidden": "true" }, make("span", {}, "100%"), make("span", {}, "0%"));
    this.most = scale.firstChild;
    this.ends = make("div", { class: "ends", "aria-hidden": "true" }, make("span", {}, "0"), make("span", {}, "0"));
    const curve = make("div", { class: "plot" }, scale, this.curve, this.ends);
    this.list = make("ol", { class: "suspicious" });
    this.table = make("div");
    this.near = make("div");
    this.mapped = make("p", { class: "small", role: "status" });
    this.map = null;
    const side = [this.list, this.table];
    if (about.slo) {
      this.lines = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
      this.map = make("figure", { class: "fundus" }, make("div", { class: "over" }, make("img", { src: about.slo, alt: `The picture of the fundus that was taken with ${row.name}.` }), this.lines));
      this.place = make("figcaption", {}, make("span"));
      this.map.append(this.place);
      side.push(this.map);
    }
    const what = row.files ? [row.files.map((f) => f.name).join(", ")] : [about.volume || row.volumes.length ? `Volume ${about.volume}` : null, eye, device || "device not said", ...spacing];
    this.keys = make("p", { class: "small" });
    this.keys.textContent = `Keys here: ← and → a B-scan, H the heat map, S the next ${this.unit ? "that counts" : "suspicious"}; on the slider Home, End, Page Up and Page Down, too.`;
    this.node = make(
      "section",
      { class: "viewer", "aria-label": `Volume ${row.name}` },
      make("p", { class: "small" }, what.filter(Boolean).join(", ")),
      this.said,
      make(
        "div",
        { class: "two" },
        make(
          "div",
          {},
          make("figure", {}, this.picture, make("figcaption", {}, this.words), this.mapped),
          this.range,
          steps,
          make("label", { class: "of" }, "Curve of ", this.choice),
          curve,
          this.legend,
          this.keys,
        ),
        make("div", {}, ...side),
      ),
      this.near,
    );
    const { first, back, next, last, worst } = this.buttons;
    this.through = [this.range, first, back, next, last, worst, this.choice.parentNode, this.curve.parentNode, this.legend, this.keys];
    this.range.addEventListener("input", () => this.go(Number(this.range.value)));
    this.choice.addEventListener("change", () => this.draw());
    this.node.addEventListener("keydown", (e) => this.key(e));
    for (const kind of ["keydown", "pointerdown"]) this.node.addEventListener(kind, () => { this.touched = true; });
    // So that the keys work after a click.
    for (const part of [this.picture, this.curve, this.lines]) if (part) part.addEventListener("click", () => this.range.focus({ preventScroll: true }));
    const place = (e) => {
      const box = this.curve.getBoundingClientRect();
      this.go(Math.round(((e.clientX - box.left) / box.width) * this.frames.length - 0.5));
    };
    this.curve.addEventListener("pointerdown", (e) => {
      this.curve.setPointerCapture(e.pointerId);
      place(e);
    });
    this.curve.addEventListener("pointermove", (e) => e.buttons && place(e));
    if (this.lines) this.lines.addEventListener("click", (e) => this.nearest(e));
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target === this.choice) return;
    const own = e.target === this.range; // which knows arrows by itself
    const act = { ArrowLeft: () => !own && this.go(this.at - 1), ArrowRight: () => !own && this.go(this.at + 1), h: () => this.toggle(), s: () => this.next() }[e.key.length === 1 ? e.key.toLowerCase() : e.key];
    if (!act) return;
    if (act() !== false) e.preventDefault();
  }

  add(frame) {
    if (frame.picture) {
      const bytes = Uint8Array.from(atob(frame.picture.split(",")[1]), (c) => c.charCodeAt(0));
      frame.blob = new Blob([bytes], { type: "image/png" });
      frame.picture = URL.createObjectURL(frame.blob);
    }
    this.frames.push(frame);
    if (this.frames.length === 1) this.go(0);
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      if (!this.answer) this.said.replaceChildren(make("p", { class: "said" }, `reading … ${bscans(this.frames.length)} so far`));
      this.draw();
    }, 200);
  }

  // What the server says of the whole volume.
  finish(said) {
    this.answer = said;
    if (this.unit) {
      this.finishUnit(said);
      return;
    }
    const badges = make("div");
    if (said.referred) badges.append(make("span", { class: "badge urgent" }, "Refer urgently"));
    if (said.unlike_training) badges.append(make("span", { class: "badge unsure" }, said.unlike_training < said.frames ? "Unlike training in part" : "Unlike training"));
    if (said.abstained) badges.append(make("span", { class: "badge unsure" }, "Not sure"));
    const parts = [badges];
    const urgent = this.model.urgent_classes;
    if (said.predicted) parts.push(make("p", { class: "said" }, make("strong", {}, said.predicted), ` ${percent(said.probability)}`));
    if (said.urgent_frame !== null && said.urgent_frame !== undefined) {
      const whose = `B-scan ${said.urgent_frame} has ${percent(said.urgent_score)} for ${urgent.join(" and ")}${urgent.length > 1 ? " together" : ""}`;
      parts.push(make("p", { class: "said" }, make("strong", {}, said.referred ? "Urgent referral" : "No urgent referral"), `: ${whose}, the most of all.`));
      parts.push(make("p", { class: "small" }, said.how ?? "A volume is as urgent as its most urgent B-scan; no vote is taken."));
    } else if (said.how) {
      parts.push(make("p", { class: "small" }, said.how));
    }
    const counts = this.model.classes.filter((c) => said[`scans_${c}`]).map((c) => `${said[`scans_${c}`]} ${c}`);
    parts.push(make("p", {}, `${bscans(said.frames)}${counts.length ? `: ${counts.join(", ")}` : ""}${said.unread ? `; ${said.unread} could not be read` : ""}.`));
    if (said.unlike_training) {
      const which = this.frames.filter((f) => f.unlike_training).map((f) => f.frame);
      const first = `${which.slice(0, 12).join(", ")}${which.length > 12 ? " and more" : ""}`;
      const given = this.model.answer_anyway ? "a class is given all the same, as this page was started so" : "no class is given";
      const one = which.length === 1;
      const numbers = said.frames > 1 ? ` (${one ? "number" : "numbers"} ${first})` : "";
      parts.push(make("p", { class: "far" }, `${bscans(which.length)}${numbers} ${one ? "is" : "are"} unlike anything the model was trained on; ${given}. Let a person decide.`));
    }
    this.said.replaceChildren(...parts);
    this.draw();
    this.go(this.touched ? this.at : (said.urgent_frame ?? 0));
  }

  // As `finish`, where the answer is one for all scans, and each of them counted for so much.
  finishUnit(said) {
    this.frames.forEach((f, n) => {
      f.attention = said.attention ? said.attention[n] : null;
      f.deciding = (said.deciding || []).includes(f.frame);
      f.map = undefined; // of another class, if it was made before the answer was known
    });
    const badges = make("div");
    if (said.unlike_training) badges.append(make("span", { class: "badge unsure" }, "Unlike training"));
    if (said.referred) badges.append(make("span", { class: "badge urgent" }, "Refer urgently"));
    if (said.abstained) badges.append(make("span", { class: "badge unsure" }, "Not sure"));
    const parts = [badges];
    if (said.unlike_training) parts.push(make("p", { class: "far" }, `${sentence(said.unlike_reason)}. Let a person decide.`));
    const result = said.predicted ? [make("strong", {}, said.predicted), ` ${percent(said.probability)}`] : [make("strong", {}, "No class")];
    parts.push(make("p", { class: "said" }, ...result, ` for the ${this.model.level}`));
    if (said.abstained && said.possible && said.possible.length > 1) parts.push(make("p", {}, `It could be ${said.possible.join(" or ")}. Let a person decide.`));
    const others = (said.of_volumes || []).filter((v) => v !== said.volume);
    const noun = this.row.files ? "picture" : "B-scan";
    const from = others.length ? `From ${said.scans} B-scans, also those of volume ${others.join(" and ")}` : `From ${said.frames} ${noun}${said.frames === 1 ? "" : "s"}`;
    parts.push(make("p", {}, `${from}${said.unread ? `; ${said.unread} could not be read` : ""}. ${said.how ?? ""}`));
    const deciding = this.frames.filter((f) => f.deciding).sort((a, b) => b.attention - a.attention);
    const words = deciding.map((f) => `${called(f)} (${percent(f.attention)})`).join(", ");
    if (deciding.length) parts.push(make("p", {}, make("strong", {}, "Counted most"), `: ${words}. That is no evidence that a disease is on them, nor that there is none on others.`));
    else if (said.predicted && this.frames.length > 1) parts.push(make("p", {}, others.length ? "Those that counted most are of the other volume." : "All scans counted about alike."));
    const table = said.probabilities ? probabilities(said) : null;
    if (table) parts.push(table);
    this.said.replaceChildren(...parts);
    this.draw();
    const first = said.most_volume === said.volume ? this.frames.findIndex((f) => f.frame === said.most_frame) : 0;
    this.go(this.touched ? this.at : Math.max(0, first));
  }

  score(frame) {
    if (this.unit) {
      if (!frame || frame.error) return null;
      return (this.choice.value ? frame.alone[this.choice.value] : frame.attention) ?? null;
    }
    if (!frame || frame.error || !Object.keys(frame.probabilities || {}).length) return null;
    return this.choice.value ? frame.probabilities[this.choice.value] : frame.urgent_score;
  }

  suspects() {
    const scored = this.frames.map((f, n) => [n, this.score(f)]).filter(([, s]) => s !== null);
    return scored.sort((a, b) => b[1] - a[1]).slice(0, SUSPICIOUS).map(([n]) => n);
  }

  go(n) {
    if (!this.frames.length) return;
    this.at = Math.max(0, Math.min(this.frames.length - 1, n));
    const f = this.frames[this.at];
    this.range.max = this.frames.length - 1;
    this.range.value = this.at;
    this.range.setAttribute("aria-valuetext", called(f));
    this.shown();
    const mm = f.position_mm === null ? "" : `, ${f.position_mm.toFixed(2)} mm from the first`;
    const marks = [];
    if (f.unlike_training) marks.push(make("span", { class: "badge unsure" }, "Unlike training"));
    if (f.referred) marks.push(make("span", { class: "badge urgent" }, "Refer urgently"));
    if (f.abstained) marks.push(make("span", { class: "badge unsure" }, "Not sure"));
    if (f.deciding) marks.push(make("span", { class: "badge counts" }, "Counted most"));
    const share = f.attention === undefined || f.attention === null ? "" : `counts ${percent(f.attention)}`;
    const said = f.error ? `Not read: ${f.error}.` : this.unit ? share : f.predicted ? `${f.predicted} ${percent(f.probability)}` : "No class";
    const remarks = (f.remarks || []).map((r) => make("span", { class: "remark" }, `Of the picture: ${r}. `));
    if (f.unlike_reason) remarks.unshift(make("span", { class: "remark" }, `${sentence(f.unlike_reason)}. `));
    const last = this.frames[this.frames.length - 1].frame;
    const of = this.frames.length < 2 ? "" : f.name === undefined ? ` (0 to ${last})` : ` of ${last + 1}, ${f.name}`;
    const where = `${called(f)}${of}${mm}: `;
    this.words.replaceChildren(make("span", {}, where, make("strong", {}, said), " "), ...marks, ...remarks);
    const alone = "What this scan says alone, which is no answer";
    const table = f.error ? null : this.unit ? probabilities({ probabilities: f.alone }, alone) : probabilities(f);
    this.table.replaceChildren(...(table ? [make("h4", {}, called(f)), table] : []));
    for (const name of ["first", "back"]) this.buttons[name].disabled = this.at === 0;
    for (const name of ["next", "last"]) this.buttons[name].disabled = this.at === this.frames.length - 1;
    this.cursor();
    if (this.heat) this.wantMap();
  }

  next() {
    const all = this.suspects();
    if (!all.length) return;
    this.go(all[(all.indexOf(this.at) + 1) % all.length]);
  }

  shown() {
    const f = this.frames[this.at];
    const on = this.heat && f.map && f.map.heat_map;
    this.picture.src = on ? f.map.heat_map : f.picture || "";
    this.picture.width = f.width || 1;
    this.picture.height = f.height || 1;
    this.picture.alt = on
      ? `Heat map over ${called(f)}: what raised the score of ${f.map.heat_map_of}; ${this.model.heat_map_caution}.`
      : `${called(f)} of ${this.row.name}, ${f.width} by ${f.height} pixels.`;
    this.mapped.textContent = this.heat && f.map ? this.mapWords(f) : "";
    this.near.replaceChildren(...[this.heat && f.map ? beside(f.map.similar) : null].filter(Boolean));
  }

  mapWords(f) {
    const note = f.map.heat_map_note ? `; ${f.map.heat_map_note}` : "";
    return f.map.heat_map ? `Heat map: raised the score of ${f.map.heat_map_of}; ${this.model.heat_map_caution}${note}.` : `No heat map: ${f.map.heat_map_reason || f.map.error}.`;
  }

  toggle(heat = !this.heat) {
    this.heat = heat;
    this.buttons.map.setAttribute("aria-pressed", String(this.heat));
    this.shown();
    if (this.heat) this.wantMap(0);
  }

  // The map of the shown B-scan, once one has stayed there for a moment.
  wantMap(wait = 250) {
    clearTimeout(this.timer);
    const f = this.frames[this.at];
    if (f.map || !f.blob) return;
    this.mapped.textContent = "Making the heat map …";
    this.timer = setTimeout(async () => {
      // Of one scan among many it is of the class that all of them together are given.
      const of = this.unit && this.answer && this.answer.predicted ? `&of=${encodeURIComponent(this.answer.predicted)}` : "";
      const { response, error } = await send(`api/predict?heatmap=1${of}`, f.blob, this.row.stop.signal);
      f.map = response ? await json(response) : { error: error || "called off" };
      if (this.frames[this.at] === f) this.shown();
    }, wait);
  }

  x(n) {
    return (1000 * (n + 0.5)) / Math.max(1, this.frames.length);
  }

  draw() {
    const shares = this.unit && !this.choice.value;
    const threshold = this.choice.value || this.unit ? null : this.model.urgent_threshold;
    const top = shares ? Math.max(1e-6, ...this.frames.map((f) => f.attention || 0)) : 1;
    this.most.textContent = shares ? percent(top) : "100%";
    const y = (p) => 98 - (96 * p) / top;
    const parts = [];
    for (const p of [0, top / 2, top]) parts.push(svg("line", { x1: 0, x2: 1000, y1: y(p), y2: y(p), class: "grid" }));
    if (threshold !== null) parts.push(svg("line", { x1: 0, x2: 1000, y1: y(threshold), y2: y(threshold), class: "threshold" }));
    let way = "";
    let drawing = false;
    const dots = [];
    this.frames.forEach((f, n) => {
      const score = this.score(f);
      if (score === null) {
        drawing = false;
        parts.push(svg("line", { x1: this.x(n), x2: this.x(n), y1: 86, y2: 98, class: "without" }));
        return;
      }
      way += `${drawing ? "L" : "M"}${this.x(n).toFixed(2)} ${y(score).toFixed(2)}`;
      drawing = true;
      if (this.frames.length <= 120 || f.referred || f.deciding) dots.push(svg("path", { d: `M${this.x(n).toFixed(2)} ${y(score).toFixed(2)}h.01`, class: shares && f.deciding ? "dot counts" : f.referred && !this.choice.value ? "dot referred" : "dot" }));
    });
    this.now = svg("line", { y1: 0, y2: 100, class: "now" });
    this.curve.replaceChildren(...parts, svg("path", { d: way || "M0 0", class: "score" }), ...dots, this.now);
    const all = this.suspects();
    const of = this.choice.selectedOptions[0].textContent;
    const most = all.length ? `; the most, ${percent(this.score(this.frames[all[0]]))}, has ${called(this.frames[all[0]])}` : "";
    const what = shares ? "How much each scan counts; together they count 100%" : `Probability of ${of}, B-scan by B-scan`;
    this.curve.setAttribute("aria-label", shares ? `Curve of how much each scan counts${most}.` : `Curve of the probability of ${of}, a B-scan each${most}.`);
    const line = threshold === null ? "" : ` The dashed line is the threshold of an urgent referral, ${percent(threshold)}.`;
    const lacking = this.unit ? "that was not read" : "without a class";
    const without = this.frames.some((f) => (this.unit ? f.error : this.score(f) === null)) ? ` A short line at the foot marks a B-scan ${lacking}.` : "";
    const counts = shares && this.frames.some((f) => f.deciding) ? " The large dots are those that count most." : "";
    this.legend.textContent = `${what}; click or drag to go there.${line}${counts}${without}`;
    const shift = this.row.files ? 1 : 0; // pictures are counted from 1
    this.ends.firstChild.textContent = shift;
    this.ends.lastChild.textContent = this.frames.length ? this.frames[this.frames.length - 1].frame + shift : shift;
    const items = all.map((n) => {
      const f = this.frames[n];
      const pick = make("button", { type: "button", class: "plain pick" }, make("img", { src: f.picture, alt: "" }), `${called(f)}: ${percent(this.score(f))}`);
      pick.addEventListener("click", () => this.go(n));
      return make("li", {}, pick);
    });
    this.list.replaceChildren(...(items.length > 1 ? [make("li", { class: "title" }, make("h4", {}, shares ? "Counted most" : this.unit ? `Highest: ${of}` : `Most suspicious: ${of}`)), ...items] : []));
    // Of a single B-scan there is nothing to go through.
    for (const part of this.through) part.hidden = this.frames.length < 2;
    this.cursor();
  }

  cursor() {
    if (this.now) {
      this.now.setAttribute("x1", this.x(this.at));
      this.now.setAttribute("x2", this.x(this.at));
    }
    if (!this.lines) return;
    const all = this.frames.filter((f) => f.line);
    const one = (f, kind) => svg("line", { x1: f.line[0], y1: f.line[1], x2: f.line[2], y2: f.line[3], class: kind });
    const here = this.frames[this.at];
    const there = all.map((f) => one(f, f.referred || f.deciding ? "referred" : "other"));
    const now = here && here.line ? [one(here, "under"), one(here, "here")] : [];
    this.lines.replaceChildren(...there, ...now);
    const words = !all.length ? "The file does not say where the B-scans lie on it." : here.line ? `B-scan ${here.frame} is the thick line${this.frames.some((f) => (f.referred || f.deciding) && f.line) ? `; red lines are B-scans ${this.unit ? "that count most" : "to refer urgently"}` : ""}.${this.frames.length > 1 ? " Click to go to the nearest." : ""}` : "";
    this.place.firstChild.textContent = words;
  }

  // The B-scan whose line is nearest to a click on the fundus.
  nearest(e) {
    const box = this.lines.getBoundingClientRect();
    const [px, py] = [(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height];
    const far = (f) => {
      const [x, y, u, v] = f.line;
      const t = Math.max(0, Math.min(1, ((px - x) * (u - x) + (py - y) * (v - y)) / ((u - x) ** 2 + (v - y) ** 2 || 1)));
      return Math.hypot(px - x - t * (u - x), py - y - t * (v - y));
    };
    const all = this.frames.map((f, n) => [n, f.line ? far(f) : Infinity]).sort((a, b) => a[1] - b[1]);
    if (all.length && all[0][1] < Infinity) this.go(all[0][0]);
  }

  forget() {
    clearTimeout(this.timer);
    for (const f of this.frames) if (f.picture) URL.revokeObjectURL(f.picture);
  }
}

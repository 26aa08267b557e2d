// What the parts of the page share: making elements, numbers in words, and sending files. No library.
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k === "class") node.className = v;
    else node.setAttribute(k, v);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

export const percent = (p) => (p > 0.9995 && p < 1 ? ">99.9%" : p < 0.0005 && p > 0 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);
export const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// The response to a file, after waiting where the server is busy; else {error, hint}, or {gone} where it was called off.
export async function send(address, body, signal) {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    let response;
    try {
      const headers = body instanceof FormData ? {} : { "content-type": "application/octet-stream" };
      response = await fetch(address, { method: "POST", headers, body, signal });
    } catch {
      if (signal && signal.aborted) return { gone: true };
      return { error: "octfast did not take the file", hint: "is it still running, and is the file still there?" };
    }
    if (response.status !== 503) return { response };
    await pause(Math.min(60, Number(response.headers.get("retry-after")) || 2));
  }
  return { error: "octfast is too busy", hint: "try again later" };
}

export async function json(response) {
  try {
    return await response.json();
  } catch {
    return { error: "octfast gave no answer that can be read", hint: "try again" };
  }
}

// The scans that the model learned from which are most like one; none where no class is given.
export function beside(near) {
  if (!near || !near.length) return null;
  const list = make("ol");
  for (const n of near) {
    const picture = n.picture ? make("img", { src: n.picture, alt: "" }) : make("span", { class: "small" }, "no picture: the file is gone");
    list.append(make("li", {}, picture, make("strong", {}, n.class), ` distance ${n.distance.toFixed(3)}`));
  }
  const words = "Their classes are those they were labelled with, and no proof of this one. 0 is the same picture, 1 nothing in common.";
  return make("div", { class: "similar" }, make("h4", {}, "Training scans like this one"), make("span", { class: "small" }, words), list);
}

// The table of a scan's probabilities; null where it has none. `said` is its heading, where it is no usual one.
export function probabilities(a, said) {
  const body = make("tbody");
  for (const [name, p] of Object.entries(a.probabilities)) {
    const fill = make("div", { class: "fill" });
    fill.style.width = `${100 * p}%`;
    const bar = make("td", { "aria-hidden": "true" }, make("div", { class: "track" }, fill));
    body.append(make("tr", { class: name === a.predicted ? "best" : "" }, make("th", { scope: "row" }, name), bar, make("td", { class: "number" }, percent(p))));
  }
  const caption = said ?? (a.calibrated ? "Probabilities, calibrated" : "Probabilities, not calibrated");
  return body.childElementCount ? make("table", {}, make("caption", {}, caption), body) : null;
}

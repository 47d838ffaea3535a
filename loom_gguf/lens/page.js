"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const S = data.labels.length, T = data.tokens.length;
// Ten steps of the scale, dark to bright.
const cividis = data.cividis.map(c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16)));
const name = id => id < 0 ? "no number" : data.shown[id];
const number = (x, digits) => x === null ? "-" : x.toFixed(digits);
const percent = x => x === null ? "-" : (100 * x).toFixed(1) + "%";
const el = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls; return e; };

function colour(x) {
  const at = Math.min(Math.max(x, 0), 1) * 9, i = Math.min(Math.floor(at), 8), f = at - i;
  return cividis[i].map((c, j) => Math.round(c + f * (cividis[i + 1][j] - c)));
}
// Black or white, whichever has the higher contrast (WCAG 2).
function inkOn(rgb) {
  const [r, g, b] = rgb.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
function largest(rows) { let m = 0; for (const row of rows) for (const x of row) if (x !== null && x > m) m = x; return m; }
// An embedding is so much further off than any layer that layers would all look alike.
const scaled = data.labels[0] === "embedding" ? data.kl_nats.slice(1) : data.kl_nats;
const maxKl = Math.max(largest(scaled), 1e-6), beyond = largest(data.kl_nats) > maxKl ? " and more" : "";
const maxRank = Math.max(largest(data.rank_of_final), 2);
// Bright is near the model's own prediction in each of them; null where there is no number.
const measures = {
  prob: { of: (s, t) => data.prob_of_final[s][t], low: "0%", high: "100%" },
  top: { of: (s, t) => data.top_probs[s][t][0], low: "0%", high: "100%" },
  rank: { of: (s, t) => { const r = data.rank_of_final[s][t]; return r ? 1 - Math.log(r) / Math.log(maxRank) : null; },
    low: "rank " + maxRank, high: "rank 1" },
  kl: { of: (s, t) => { const k = data.kl_nats[s][t]; return k === null ? null : 1 - k / maxKl; },
    low: maxKl.toPrecision(3) + " nats" + beyond, high: "0 nats" },
};

const cells = [];
function build() {
  const table = document.getElementById("lens"), body = table.tBodies[0];
  const top = table.tHead.insertRow();
  top.append(el("th", "model says"));
  for (let t = 0; t < T; t++) top.append(el("th", name(data.final_ids[t])));
  for (let s = S - 1; s >= 0; s--) {
    const row = body.insertRow();
    row.append(el("th", data.labels[s]));
    cells[s] = [];
    for (let t = 0; t < T; t++) {
      const id = data.top_ids[s][t][0];
      const button = el("button", name(id), id >= 0 && id === data.final_ids[t] ? "same" : "");
      button.type = "button";
      button.addEventListener("click", () => detail(s, t));
      row.insertCell().append(button);
      cells[s][t] = button;
    }
  }
  const foot = table.tFoot.insertRow();
  foot.append(el("th", "token read"));
  for (let t = 0; t < T; t++) foot.append(el("th", data.read[t]));
  document.getElementById("about").textContent = `Output matrix: ${data.output_matrix}. ` + (data.engine_logits
    ? "The final row is of llama.cpp's own logits." : "The final row is of the captured final state.");
}
function paint() {
  const measure = measures[document.getElementById("measure").value];
  let bad = false;
  for (let s = 0; s < S; s++) for (let t = 0; t < T; t++) {
    const x = measure.of(s, t), style = cells[s][t].style;
    if (x === null) { bad = true; style.background = data.missing; style.color = "#fff"; continue; }
    const rgb = colour(x);
    style.background = `rgb(${rgb})`;
    style.color = inkOn(rgb);
  }
  document.getElementById("low").textContent = measure.low;
  document.getElementById("high").textContent = measure.high;
  document.getElementById("scale").style.background =
    `linear-gradient(to right, ${cividis.map(c => `rgb(${c})`).join(",")})`;
  document.getElementById("bad").hidden = !bad;
}
let pressed = null;
function detail(s, t) {
  if (pressed) pressed.setAttribute("aria-pressed", "false");
  pressed = cells[s][t];
  pressed.setAttribute("aria-pressed", "true");
  const place = document.getElementById("detail");
  place.replaceChildren();
  const label = data.labels[s], state = label === "final" || label === "embedding" ? label : "layer " + label;
  const head = el("h2", `${state}, position ${data.positions[t]}, after `);
  head.append(el("code", data.read[t]));
  const about = el("p", "The model's own choice ");
  about.append(el("code", name(data.final_ids[t])), ` has rank ${data.rank_of_final[s][t] || "-"} and probability ` +
    `${percent(data.prob_of_final[s][t])} here; KL(final || state) is ${number(data.kl_nats[s][t], 4)} nats.`);
  const table = el("table");
  data.top_ids[s][t].forEach((id, i) => {
    if (id < 0) return;
    const row = table.insertRow(), p = data.top_probs[s][t][i];
    row.insertCell().textContent = i + 1;
    row.insertCell().append(el("code", name(id)));
    row.insertCell().textContent = percent(p);
    const track = el("div", undefined, "track"), fill = el("div", undefined, "fill");
    fill.style.width = (100 * p) + "%";
    track.append(fill);
    row.insertCell().append(track);
    row.insertCell().textContent = "id " + id;
  });
  place.append(head, about, table);
}
build();
document.getElementById("measure").addEventListener("change", paint);
paint();
detail(S - 1, T - 1);

"use strict";
const told = JSON.parse(document.getElementById("confusions").textContent);
const heat = document.getElementById("heat"), tip = document.getElementById("tip"), chosen = document.getElementById("run");
const LEFT = 150, TOP = 150, CELL = 14, n = told.names.length;

function make(kind, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw() {
  const matrix = told.runs[chosen.value], parts = [];
  matrix.forEach((row, i) => {
    const played = row.reduce((a, b) => a + b, 0);
    row.forEach((count, j) => {
      if (count) parts.push(make("rect", {
        x: LEFT + j * CELL, y: TOP + i * CELL, width: CELL, height: CELL,
        fill: `rgba(var(--heat), ${(0.15 + 0.85 * count / played).toFixed(3)})`,
      }));
    });
    const middle = (i + 0.5) * CELL + 3;
    parts.push(make("text", { x: LEFT - 5, y: TOP + middle, "text-anchor": "end" }, told.names[i]));
    parts.push(make("text", { transform: `translate(${LEFT + middle} ${TOP - 5}) rotate(-90)` }, told.names[i]));
  });
  for (let i = 0; i <= n; i++) {
    if (i > 0 && i < n && told.families[i] === told.families[i - 1]) continue;
    const at = i * CELL;
    parts.push(make("line", { class: "ruler", x1: LEFT + at, x2: LEFT + at, y1: TOP, y2: TOP + n * CELL }));
    parts.push(make("line", { class: "ruler", y1: TOP + at, y2: TOP + at, x1: LEFT, x2: LEFT + n * CELL }));
  }
  heat.replaceChildren(...parts);
}

function tell(event) {
  const box = heat.getBoundingClientRect(), scale = box.width / (LEFT + n * CELL + 10);
  const j = Math.floor(((event.clientX - box.left) / scale - LEFT) / CELL);
  const i = Math.floor(((event.clientY - box.top) / scale - TOP) / CELL);
  tip.hidden = !(i >= 0 && i < n && j >= 0 && j < n);
  if (tip.hidden) return;
  const row = told.runs[chosen.value][i], played = row.reduce((a, b) => a + b, 0);
  tip.textContent = i === j
    ? `${told.names[i]}: ${row[i]} of ${played} clips known`
    : `${told.names[i]}, taken for ${told.names[j]}: ${row[j]} of ${played} clips`;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 12)}px`;
}

chosen.addEventListener("change", draw);
heat.addEventListener("pointermove", tell);
heat.addEventListener("pointerdown", tell);
heat.addEventListener("pointerleave", () => { tip.hidden = true; });
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
draw();

"use strict";
// Nothing here is needed to read the page: it sorts, filters, copies and shows figures under the pointer.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Sorting: a cell's data-v is its number or lower-case text; cells without one stay at the end in both directions.
for (const table of all("table.sortable")) {
  all("thead th", table).forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("num");
    const now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : numeric;
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.v;
    const rows = all("tbody tr", table).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

for (const input of all("input[data-filter]")) {
  const rows = all("tbody tr", document.getElementById(input.dataset.filter));
  const shown = input.parentElement.querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    shown.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
}

for (const button of all(".copy")) button.addEventListener("click", async () => {
  const code = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {  // a page opened from disk may not reach the clipboard: select the text, so that one key copies it
    getSelection().selectAllChildren(code);
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
});

for (const tab of all(".tabs button")) tab.addEventListener("click", () => {
  all(".tabs button").forEach((other) => other.setAttribute("aria-selected", String(other === tab)));
  all(".plot").forEach((plot) => plot.classList.toggle("shown", plot.id === tab.getAttribute("aria-controls")));
});

const tip = document.getElementById("tip");
const data = JSON.parse(document.getElementById("cells").textContent);
function heatText(cell) {
  const row = cell.closest("tr");
  const column = cell.cellIndex - all("th", row).length;
  const figures = data.cells[row.dataset.layer][column];
  const head = `${row.dataset.layer}\n${data.schemes[column]}${cell.classList.contains("on") ? " (chosen)" : ""}`;
  if (!figures) return `${head}\nnot offered for this layer`;
  const [score, sqnr, ms, size] = figures;
  const lines = [score ? `score ${score}` : "score not measured", sqnr && `SQNR ${sqnr} dB`,
    [ms && `${ms} ms`, size].filter(Boolean).join(" · ")];
  return [head, ...lines.filter(Boolean)].join("\n");
}
document.addEventListener("pointerover", (event) => {
  const cell = event.target.closest(".heat td");
  const mark = event.target.closest("[data-tip]");
  tip.textContent = cell ? heatText(cell) : mark ? mark.dataset.tip : "";
});
document.addEventListener("pointermove", (event) => {
  if (!tip.textContent) return;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
});

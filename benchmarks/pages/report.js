"use strict";
// Sorts and narrows down the table of rows. Without it the page shows every row, in the order of the report.
(() => {
  const MISSING = "–";
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const titles = heads.map((head) => head.textContent);
  const controls = document.getElementById("filters");
  const selects = [...controls.querySelectorAll("select")];
  const count = document.getElementById("count");
  const clear = document.getElementById("clear");

  // A cell's number or words; null where nothing was measured.
  function keyOf(row, column) {
    const cell = row.cells[column];
    if (heads[column].classList.contains("number")) {
      return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    }
    const words = cell.textContent.trim();
    return words.startsWith(MISSING) ? null : words;
  }

  // What is missing comes last whichever the direction; equal rows keep their order.
  function compare(a, b, direction) {
    if (a === null || b === null) {
      return (a === null) - (b === null);
    }
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  }

  function sortBy(column) {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row, column) }));
    keyed.sort((one, other) => compare(one.key, other.key, ascending ? 1 : -1));
    body.append(...keyed.map((entry) => entry.row));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }

  function filter() {
    const chosen = selects.filter((select) => select.value !== "");
    const matches = (row) =>
      chosen.every((select) => row.cells[titles.indexOf(select.name)].textContent.trim() === select.value);
    for (const row of body.rows) {
      row.hidden = !matches(row);
    }
    const shown = [...body.rows].filter((row) => !row.hidden).length;
    count.textContent = `${shown} of ${body.rows.length} rows`;
    clear.disabled = chosen.length === 0;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = titles[column];
    button.addEventListener("click", () => sortBy(column));
    head.replaceChildren(button);
  });
  selects.forEach((select) => select.addEventListener("change", filter));
  clear.addEventListener("click", () => {
    selects.forEach((select) => {
      select.value = "";
    });
    filter();
  });
  controls.hidden = false;
  filter();
})();

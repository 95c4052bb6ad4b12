// Tables of class "sortable" sort by a click on a title. Without this script they are tables as they were written.
"use strict";
function sortKey(cell) {
  const text = cell.textContent.trim();
  const number = Number(text.replace("−", "-").replace(/,/g, "").replace(/ .*/, ""));
  return text === "–" || text === "" ? null : Number.isNaN(number) ? text : number;
}
function sortRows(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map(row => [sortKey(row.cells[column]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return ascending ? order : -order;
  });
  body.append(...keyed.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    if (!table.tBodies[0].rows.length || table.tBodies[0].rows[0].cells[column].querySelector(".track")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const before = title.getAttribute("aria-sort");
      const ascending = before === null ? !title.classList.contains("n") : before === "descending";
      titles.forEach(each => each.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortRows(table, column, ascending);
    });
  });
}

// Tables that can be sorted by each column.

const ROWS_AT_FIRST = 12;

function sortable(table) {
  const rows = table.rows.map((cells, place) => ({ cells, place }));
  let sorted = { column: -1, descending: false };
  let all = false;
  const body = make("tbody");
  const heads = table.columns.map((column, index) => make("th", {
    scope: "col",
    class: column.numeric ? "number" : null,
    title: column.help,
  }, make("button", { type: "button", on: { click: () => sortBy(index) } }, column.name)));
  const more = make("button", { type: "button", class: "more", on: { click: () => { all = !all; fill(); } } });

  function fill() {
    const shown = all ? rows : rows.slice(0, ROWS_AT_FIRST);
    body.replaceChildren(...shown.map(({ cells }) => make("tr", {}, ...cells.map(([text], index) =>
      make(index === 0 ? "th" : "td", {
        scope: index === 0 ? "row" : null,
        class: table.columns[index].numeric ? "number" : null,
      }, text)))));
    more.textContent = all ? "Show fewer" : `Show all ${thousands(rows.length)}`;
    more.hidden = rows.length <= ROWS_AT_FIRST;
    more.setAttribute("aria-expanded", String(all));
  }

  function sortBy(column) {
    const numeric = table.columns[column].numeric;
    // The first click on a column sorts numbers with the largest first, and names in alphabetical order.
    const descending = sorted.column === column ? !sorted.descending : numeric;
    sorted = { column, descending };
    const value = (row) => row.cells[column][1] ?? row.cells[column][0];
    const compare = (a, b) => numeric ? value(a) - value(b) : String(value(a)).localeCompare(String(value(b)), "en", { numeric: true });
    rows.sort((a, b) => (descending ? -compare(a, b) : compare(a, b)) || a.place - b.place);
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    fill();
  }

  fill();
  const region = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${table.title}, table` },
    make("table", {}, make("caption", { class: "hidden" }, `${table.title}. Click the head of a column to sort by it.`),
      make("thead", {}, make("tr", {}, ...heads)), body));
  return [rows.length > 0 ? region : null, more, ...table.notes.map(note)];
}

function fillTables() {
  for (const table of data.tables) {
    const title = `${table.id}-title`;
    byId("tables").append(make("section", { id: table.id, "aria-labelledby": title },
      make("h2", { id: title }, table.title), make("p", { class: "intro" }, table.intro), ...sortable(table).filter(Boolean)));
  }
}

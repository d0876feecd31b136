// Shows the ledger as two bars and as a table.

const classColor = (name) => `class-${name.replaceAll(" ", "-")}`;

// Returns black or white, whichever is easier to read on the given background colour (for example #8c5a3c).
function readableOn(hex) {
  const channel = (at) => {
    const value = parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
  // At this luminance, the near-black and the near-white have the same contrast with the background.
  return luminance > 0.19 ? "#111111" : "#ffffff";
}

function fillLedger() {
  const ledger = data.ledger;
  const bars = byId("ledger-bars");

  function bar(title, value, share) {
    const parts = ledger.rows.filter((row) => value(row) > 0);
    const total = parts.reduce((sum, row) => sum + value(row), 0);
    const words = parts.map((row) => `${row.class} ${share(row)}`).join(", ");
    return [
      make("p", { class: "bar-title" }, title),
      make("div", { class: "bar", role: "img", "aria-label": `${title}: ${words || "none"}` }, ...parts.map((row) => make("span", {
        title: `${row.class}: ${share(row)}`,
        style: {
          "flex": `${value(row) / total} 1 0`,
          "background": `var(--${classColor(row.class)})`,
          "color": readableOn(color(classColor(row.class))),
        },
      }, value(row) / total > 0.12 ? `${row.class} ${share(row)}` : ""))),
    ];
  }

  function draw() {
    bars.replaceChildren(
      ...bar(`${ledger.total} kernel switches`, (row) => row.count, (row) => row.texts[1]),
      ...bar("their off-CPU time", (row) => row.off_cpu_ns, (row) => row.texts[3]));
  }
  draw();
  onRedraw(draw);

  const swatch = (name) => make("span", { class: "swatch", style: { background: `var(--${classColor(name)})` } });
  const head = ["class", "what happened", "switches", "share", "off-CPU", "share"];
  const numeric = (index) => (index >= 2 ? "number" : null);
  byId("ledger-table").append(
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The ledger, table" },
      make("table", {},
        make("caption", { class: "hidden" }, "The ledger: kernel switches by class"),
        make("thead", {}, make("tr", {}, ...head.map((name, index) => make("th", { scope: "col", class: numeric(index) }, name)))),
        make("tbody", {}, ...ledger.rows.map((row) => make("tr", {},
          make("th", { scope: "row" }, swatch(row.class), row.class),
          make("td", {}, row.meaning),
          ...row.texts.map((text) => make("td", { class: "number" }, text))))))),
    ...ledger.notes.map(note));
}

// The flamegraphs. One is shown at a time, by time or by number, with a search field.

const KINDS = ["activity", "thread", "function", "inlined function", "kernel function", "no function"];
// The colours of KINDS, as in the SVG flamegraphs: purple, grey, blue, teal, orange, light grey.
const SHADES = [
  (s) => [170 + s, 140 + s, 210 + s / 2],
  () => [186, 186, 186],
  (s) => [110 + s, 160 + s, 215 + s / 2],
  (s) => [130 + s, 200 + s / 2, 190 + s],
  (s) => [235 + s / 3, 140 + s, 60 + s],
  () => [222, 222, 222],
];

function frameColor(kind, name) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return `rgb(${SHADES[kind]((hash >>> 24) / 6).map(Math.round).join(", ")})`;
}

// Converts the frames of a tree to the nested objects that the library needs.
function treeOf(tree, by) {
  const root = { name: "all", kind: 1, count: tree.count, ns: tree.ns, value: by === "time" ? tree.ns : tree.count };
  const path = [root];
  for (let i = 0; i < tree.nodes.length; i += 4) {
    const [depth, index, count, ns] = tree.nodes.slice(i, i + 4);
    const [kind, name] = tree.names[index];
    const node = { name, kind, count, ns, value: by === "time" ? ns : count };
    const parent = path[depth];
    if (parent === undefined) continue;
    path.length = depth + 1;
    if (node.value > 0) {
      (parent.children ??= []).push(node);
      path.push(node);
    }
  }
  return root;
}

class FlameView {
  constructor(flame) {
    this.flame = flame;
    this.by = flame.tree.here.ns > 0 ? "time" : "count";
    this.box = make("div", {
      class: "flame", tabindex: "0", role: "application", "aria-roledescription": "flamegraph",
      "aria-label": `${flame.title} flamegraph. Arrow keys move from frame to frame, Enter zooms in, Escape zooms out.`,
    });
    this.reading = make("p", { class: "flame-reading", "aria-live": "polite" });
    this.found = make("span", { class: "muted", role: "status" });
    this.search = make("input", { type: "search", placeholder: "a function, a task …", "aria-label": `Search in the ${flame.title} flamegraph`, size: "24" });
    this.search.addEventListener("input", () => this.find());
    const button = (text, act) => make("button", { type: "button", on: { click: act } }, text);
    this.element = make("div", {},
      make("p", { class: "intro" }, flame.intro),
      make("div", { class: "controls" },
        choice("What the width means", [["time", "time"], ["count", flame.unit]], this.by, (by) => { this.by = by; this.draw(); }),
        make("label", {}, "Search", this.search), this.found, make("span", { class: "spacer" }), button("Zoom out", () => this.zoomOut())),
      make("div", { class: "card" }, this.box, this.reading),
      make("p", { class: "keys" }, "Click a frame to zoom in. Keys: ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " ", make("kbd", {}, "←"), " ",
        make("kbd", {}, "→"), " move from frame to frame, ", make("kbd", {}, "Enter"), " zooms in, ", make("kbd", {}, "Esc"), " zooms out."),
      ...flame.notes.map(note),
      flame.tree.here.left_out > 0 ? note(`${thousands(flame.tree.here.left_out)} smaller frames are not drawn; their values are included in the frames above them.`) : null);
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    this.box.replaceChildren();
    this.chart = d3.flamegraph()
      .width(Math.max(this.box.clientWidth, 200))
      .cellHeight(19)
      .minFrameSize(1)
      .inverted(true)
      .transitionDuration(0)
      .sort((a, b) => b.value - a.value)
      .getName((d) => d.data.name)
      .setLabelHandler((d) => this.describe(d))
      .setColorMapper((d) => (d.highlight ? "#e83fd0" : frameColor(d.data.kind, d.data.name)))
      .setSearchMatch((d, term) => term !== "" && d.data.name.toLowerCase().includes(term.toLowerCase()))
      .setSearchHandler((results, sum, total) => {
        this.found.textContent = results.length === 0 ? "not found" : `in ${percent(sum / total)} (${this.amount(sum)}), ${thousands(results.length)} frames`;
      })
      .setDetailsHandler(() => {})
      .onHover((d) => this.say(d))
      .onClick((d) => this.choose(d));
    d3.select(this.box).datum(treeOf(this.flame.tree.here, this.by)).call(this.chart);
    this.root = d3.select(this.box).datum();
    const svg = this.box.querySelector("svg");
    svg.setAttribute("aria-hidden", "true");
    svg.querySelector(".title")?.remove();
    // The library reserves space for a title, which is removed here.
    const frames = [...svg.querySelectorAll("g")].map((g) => Number(/,\s*([\d.]+)/.exec(g.getAttribute("transform"))?.[1] ?? 0));
    svg.setAttribute("height", String(Math.max(0, ...frames) + 20));
    this.zoomed = this.chosen = this.root;
    this.say(this.root);
    if (this.search.value) this.find();
  }

  amount(value) {
    return this.by === "time" ? duration(value) : `${thousands(value)} ${this.flame.unit}`;
  }

  describe(d) {
    const { name, kind, count, ns } = d.data;
    const total = this.root ?? d;
    const whole = this.by === "time" ? total.data.ns : total.data.count;
    const what = d.parent ? `${KINDS[kind]} ${name}` : "all frames";
    return `${what}: ${percent((this.by === "time" ? ns : count) / Math.max(whole, 1))}, ${duration(ns)}, ${thousands(count)} ${this.flame.unit}`;
  }

  say(d) {
    this.reading.textContent = this.describe(d);
  }

  find() {
    const term = this.search.value.trim();
    if (term === "") {
      this.found.textContent = "";
      this.chart.clear();
    } else {
      this.chart.search(term);
    }
  }

  choose(d) {
    this.zoomed = this.chosen = d;
    this.mark();
    this.say(d);
  }

  zoomOut() {
    this.chart.resetZoom();
  }

  mark() {
    d3.select(this.box).selectAll("g").classed("chosen", (d) => d === this.chosen && document.activeElement === this.box);
  }

  key(event) {
    const d = this.chosen;
    const width = (node) => node.x1 - node.x0;
    const visible = (nodes) => (nodes ?? []).filter((node) => width(node) > 0);
    const sideways = (by) => {
      const siblings = visible(d.parent?.children);
      return siblings[siblings.indexOf(d) + by];
    };
    let next = null;
    if (event.key === "ArrowDown") next = visible(d.children).reduce((most, node) => (most && width(most) >= width(node) ? most : node), null);
    else if (event.key === "ArrowUp") next = d.parent;
    else if (event.key === "ArrowLeft") next = sideways(-1);
    else if (event.key === "ArrowRight") next = sideways(1);
    else if (event.key === "Enter") this.chart.zoomTo(d);
    else if (event.key === "Escape") this.zoomOut();
    else return;
    event.preventDefault();
    if (next) {
      this.chosen = next;
      this.say(next);
    }
    this.mark();
  }
}

function fillFlames() {
  const box = byId("flamegraphs");
  const here = make("div");
  const views = new Map();
  const first = data.flames.find((flame) => flame.tree.here) ?? data.flames[0];
  let shown = null;

  function show(id) {
    const flame = data.flames.find((flame) => flame.id === id);
    if (!flame.tree.here) {
      shown = null;
      here.replaceChildren(missing(flame.tree.missing));
      return;
    }
    if (!views.has(id)) views.set(id, new FlameView(flame));
    shown = views.get(id);
    here.replaceChildren(shown.element);
    shown.draw();
  }
  const options = data.flames.map((flame) => [flame.id, flame.title]);
  box.append(make("div", { class: "controls" }, choice("Which flamegraph", options, first.id, show)), here);
  whenSeen(box, () => {
    show(first.id);
    onRedraw(() => shown?.draw());
  });
}

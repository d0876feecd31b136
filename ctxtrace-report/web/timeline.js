// The lanes: what each thread did when. uPlot draws the axis, the cursor and the selection. The lanes show single intervals if a pixel
// stands for so little time that they can be distinguished. Otherwise they show cells, whose length depends on the zoom.

const STATES = ["on-cpu", "run-queue", "parked", "blocked", "off"];
const STATE_NAMES = ["on a CPU", "waiting for a CPU", "parked", "blocked", "off the CPU"];
const STATE_HELP = [
  "running", "ready to run, but no CPU is free", "a worker without work, asleep", "asleep for another reason", "off the CPU; it is not known when the thread was woken",
];
const ORIGINS = ["an unknown waker", "an interrupt", "a task", "the runtime", "a thread", "another program"];
const LANES_AT_FIRST = 16;
const LANE_HEIGHT = 40;
const BAR_TOP = 16;
const BAR_HEIGHT = 20;
const MOST_ARROWS = 400;

// The cells of a lane at every length. Each level has half as many cells as the level below it, each twice as long.
class Levels {
  constructor(lane) {
    const switches = new Uint32Array(lane.cells);
    const tasks = new Uint32Array(lane.cells);
    const [ofSwitches, ofTasks] = [new Numbers(lane.switches), new Numbers(lane.tasks)];
    for (let i = 0; i < lane.cells; i++) {
      switches[i] = ofSwitches.next();
      tasks[i] = ofTasks.next();
    }
    this.levels = [{ first: lane.first_cell, count: lane.cells, shares: bytesOf(lane.shares), switches, tasks }];
  }

  at(level) {
    while (this.levels.length <= level) this.levels.push(coarser(this.levels[this.levels.length - 1]));
    return this.levels[level];
  }
}

function coarser(fine) {
  const first = Math.floor(fine.first / 2);
  const count = Math.floor((fine.first + fine.count - 1) / 2) - first + 1;
  const sums = new Uint16Array(count * 5);
  const switches = new Uint32Array(count);
  const tasks = new Uint32Array(count);
  const leads = new Uint16Array(count);
  for (let i = 0; i < fine.count; i++) {
    const into = Math.floor((fine.first + i) / 2) - first;
    for (let state = 0; state < 5; state++) sums[into * 5 + state] += fine.shares[i * 5 + state];
    switches[into] += fine.switches[i];
    // The task of the half that was on a CPU for longer.
    if (fine.tasks[i] !== 0 && fine.shares[i * 5] >= leads[into]) {
      tasks[into] = fine.tasks[i];
      leads[into] = fine.shares[i * 5];
    }
  }
  const shares = new Uint8Array(count * 5);
  for (let i = 0; i < shares.length; i++) shares[i] = (sums[i] + 1) >> 1;
  return { first, count, shares, switches, tasks };
}

// Decodes the intervals of a lane into arrays.
function spansOf(text) {
  const numbers = new Numbers(text);
  const spans = { start: [], end: [], state: [], type: [], cpu: [], task: [] };
  let at = 0;
  while (numbers.more) {
    const start = at + numbers.next();
    at = start + numbers.next();
    const stateAndClass = numbers.next();
    spans.start.push(start);
    spans.end.push(at);
    spans.state.push(stateAndClass & 7);
    spans.type.push(stateAndClass >> 3);
    spans.cpu.push(numbers.next() - 1);
    spans.task.push(numbers.next());
  }
  return spans;
}

function wakesOf(text) {
  const numbers = new Numbers(text);
  const wakes = { at: [], to: [], from: [], origin: [], task: [] };
  let at = 0;
  while (numbers.more) {
    at += numbers.next();
    wakes.at.push(at);
    wakes.to.push(numbers.next());
    wakes.from.push(numbers.next() - 1);
    wakes.origin.push(numbers.next());
    wakes.task.push(numbers.next());
  }
  return wakes;
}

// Returns the first index of a sorted array whose value is not less than `value`.
function lowerBound(values, value) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

class TimelineView {
  constructor(timeline, box, reading, shownText) {
    Object.assign(this, { timeline, box, reading, shownText });
    this.lanes = timeline.lanes.map((lane) => ({ ...lane, levels: new Levels(lane), intervals: spansOf(lane.spans) }));
    this.wakes = wakesOf(timeline.wakes);
    this.whole = [0, Math.max(timeline.length_ns, 1)];
    this.view = this.whole;
    this.chosen = 0;
    this.cursor = null;
    this.showAll = false;
    this.pending = 0;
    this.busiest = this.lanes.map((lane, index) => [lane.levels.at(0).switches.reduce((sum, count) => sum + count, 0), index])
      .sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, LANES_AT_FIRST).map(([, index]) => index).sort((a, b) => a - b);
    this.build();
  }

  get shown() {
    return this.showAll ? this.lanes.map((_, index) => index) : this.busiest;
  }

  build() {
    this.colors = Object.fromEntries([...STATES, "text", "muted", "line", "surface", "link", "on-bar", "arrow", "faint"].map((name) => [name, color(name)]));
    if (this.plot) this.plot.destroy();
    const axis = { stroke: this.colors.muted, grid: { show: false }, ticks: { stroke: this.colors.line, width: 1 }, font: "12px system-ui, sans-serif" };
    const incrs = [];
    for (let power = 0; power < 14; power++) for (const step of [1, 2, 5]) incrs.push(step * 10 ** power);
    this.plot = new uPlot({
      width: Math.max(this.box.clientWidth, 200),
      height: 34 + 10 + this.shown.length * LANE_HEIGHT,
      padding: [0, 26, 0, 20],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 4 }, bind: { dblclick: () => () => this.show(...this.whole) } },
      scales: { x: { time: false, range: () => this.view }, y: { range: () => [0, 1] } },
      axes: [
        { ...axis, side: 0, size: 34, incrs, space: 90, values: (u, splits, index, space, incr) => this.labels(splits, incr) },
        { show: false },
      ],
      series: [{}, { show: false }],
      hooks: {
        draw: [(u) => this.draw(u)],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          const [from, to] = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          this.show(from, to);
        }],
        setCursor: [(u) => {
          if (u.cursor.left < 0) return;
          this.cursor = u.posToVal(u.cursor.left, "x");
          const lane = Math.floor((u.cursor.top - 10) / LANE_HEIGHT);
          if (lane >= 0 && lane < this.shown.length) this.chosen = lane;
          this.read();
        }],
      },
    }, [this.whole, [null, null]], this.box);
    this.updateShownText();
  }

  // Shows this period of time. It is moved into the recording, and extended to at least 50 ns.
  show(from, to) {
    const length = Math.min(Math.max(to - from, 50), this.whole[1]);
    const middle = (from + to) / 2;
    const start = Math.min(Math.max(middle - length / 2, 0), this.whole[1] - length);
    this.view = [start, start + length];
    this.refresh();
  }

  refresh() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.plot.setScale("x", { min: this.view[0], max: this.view[1] });
      this.updateShownText();
    });
  }

  zoom(factor, around = null) {
    const [from, to] = this.view;
    const center = around ?? (this.cursor !== null && this.cursor >= from && this.cursor <= to ? this.cursor : (from + to) / 2);
    const length = Math.min(Math.max((to - from) * factor, 50), this.whole[1]);
    const start = center - (center - from) * length / (to - from);
    this.show(start, start + length);
  }

  pan(part) {
    const by = (this.view[1] - this.view[0]) * part;
    this.show(this.view[0] + by, this.view[1] + by);
  }

  updateShownText() {
    const [from, to] = this.view;
    this.shownText.textContent = from === 0 && to === this.whole[1]
      ? `The whole recording: ${duration(to)}.`
      : `${duration(to - from)} of ${duration(this.whole[1])}, beginning at ${duration(from)}.`;
  }

  // Labels are times since the beginning of the recording. If those would be too long, only the first label is, and the others are
  // relative to it.
  labels(splits, incr) {
    const units = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];
    const in_ = (value, [unit, name], decimals) => `${(value / unit).toFixed(decimals)} ${name}`;
    const decimals = ([unit]) => Math.max(0, Math.ceil(Math.log10(unit / incr) - 1e-9));
    const last = Math.max(...splits.map(Math.abs));
    const unit = units.find(([size]) => last >= size) ?? units[3];
    if (decimals(unit) <= 3) return splits.map((value) => in_(value, unit, decimals(unit)));
    const span = splits[splits.length - 1] - splits[0];
    const small = units.find(([size]) => span >= size) ?? units[3];
    return splits.map((value, index) => (index === 0 ? duration(value) : `+${in_(value - splits[0], small, decimals(small))}`));
  }

  draw(u) {
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.textAlign = "left";
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const [from, to] = this.view;
    const scale = bbox.width / (to - from);
    const x = (ns) => bbox.left + (ns - from) * scale;
    if (!this.timeline.is_exact) {
      ctx.fillStyle = this.colors.link;
      for (const [start, end] of this.timeline.exact) {
        if (end > from && start < to) ctx.fillRect(x(start), bbox.top, Math.max((end - start) * scale, 2), 4 * ratio);
      }
    }
    this.exactLanes = new Set();
    this.shown.forEach((index, place) => this.drawLane(ctx, bbox, index, place, x, scale, ratio));
    this.drawWakes(ctx, bbox, x, ratio);
    ctx.restore();
  }

  top(bbox, place, ratio) {
    return bbox.top + (10 + place * LANE_HEIGHT) * ratio;
  }

  drawLane(ctx, bbox, index, place, x, scale, ratio) {
    const lane = this.lanes[index];
    const top = this.top(bbox, place, ratio);
    const bar = { top: top + BAR_TOP * ratio, height: BAR_HEIGHT * ratio };
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = this.colors.text;
    ctx.textBaseline = "alphabetic";
    ctx.fillText(`${lane.name} ${lane.tid}`, bbox.left, top + (BAR_TOP - 4) * ratio);
    if (document.activeElement === this.box && place === this.chosen) {
      ctx.strokeStyle = this.colors.link;
      ctx.lineWidth = 2 * ratio;
      ctx.strokeRect(bbox.left + ratio, bar.top - ratio, bbox.width - 2 * ratio, bar.height + 2 * ratio);
    }
    const [from, to] = this.view;
    const pieces = this.exactPieces(lane, from, to, bbox.width);
    if (!(pieces.length === 1 && pieces[0][0] <= from && pieces[0][1] >= to)) this.drawCells(ctx, lane, bar, x, scale);
    for (const [start, end] of pieces) {
      this.exactLanes.add(index);
      this.drawSpans(ctx, lane, bar, Math.max(start, from), Math.min(end, to), x, ratio);
    }
  }

  // Returns the parts of the view in which all intervals of this lane are known and wide enough to be distinguished.
  exactPieces(lane, from, to, width) {
    const pieces = [];
    for (const [start, end] of this.timeline.exact) {
      if (end <= from || start >= to) continue;
      const [a, b] = [Math.max(start, from), Math.min(end, to)];
      const count = lowerBound(lane.intervals.start, b) - lowerBound(lane.intervals.end, a);
      const pixels = (b - a) / (to - from) * width;
      if (count <= pixels * 0.7 + 4 && pixels > 3) pieces.push([start, end]);
    }
    return pieces;
  }

  drawCells(ctx, lane, bar, x, scale) {
    const cell = this.timeline.cell_ns;
    const level = Math.max(0, Math.ceil(Math.log2(1.5 / (cell * scale))));
    const cells = lane.levels.at(level);
    const length = cell * 2 ** level;
    const origin = this.timeline.cells_from_ns;
    const begin = Math.max(0, Math.floor((this.view[0] - origin) / length) - cells.first);
    const end = Math.min(cells.count, Math.ceil((this.view[1] - origin) / length) - cells.first);
    const paths = STATES.map(() => new Path2D());
    const { shares } = cells;
    const unit = bar.height / 255;
    for (let i = begin; i < end;) {
      const at = i * 5;
      // Neighbouring cells that look the same are drawn as one.
      let next = i + 1;
      while (next < end && shares[next * 5] === shares[at] && shares[next * 5 + 1] === shares[at + 1] && shares[next * 5 + 2] === shares[at + 2]
        && shares[next * 5 + 3] === shares[at + 3] && shares[next * 5 + 4] === shares[at + 4]) next++;
      const left = x(origin + (cells.first + i) * length);
      const width = x(origin + (cells.first + next) * length) - left;
      let y = bar.top + bar.height;
      for (let state = 0; state < 5; state++) {
        const height = shares[at + state] * unit;
        if (height > 0) {
          y -= height;
          paths[state].rect(left, y, width, height);
        }
      }
      i = next;
    }
    paths.forEach((path, state) => {
      ctx.fillStyle = this.colors[STATES[state]];
      ctx.fill(path);
    });
  }

  drawSpans(ctx, lane, bar, from, to, x, ratio) {
    const { start, end, state, task } = lane.intervals;
    const paths = STATES.map(() => new Path2D());
    const labels = [];
    ctx.fillStyle = this.colors.surface;
    ctx.fillRect(x(from), bar.top, x(to) - x(from), bar.height);
    const last = lowerBound(start, to);
    for (let i = lowerBound(end, from); i < last; i++) {
      const left = x(Math.max(start[i], from));
      const width = Math.max(x(Math.min(end[i], to)) - left, 0.5);
      // Sleeps are drawn thinner than running threads, so that states can be distinguished without colours.
      const thin = state[i] >= 2 ? bar.height * 0.3 : state[i] === 1 ? bar.height * 0.15 : 0;
      paths[state[i]].rect(left, bar.top + thin, width, bar.height - 2 * thin);
      if (state[i] === 0 && task[i] > 0 && width > 40 * ratio) labels.push([left, width, task[i]]);
    }
    paths.forEach((path, index) => {
      ctx.fillStyle = this.colors[STATES[index]];
      ctx.fill(path);
    });
    ctx.fillStyle = this.colors["on-bar"];
    ctx.textBaseline = "middle";
    for (const [left, width, number] of labels) {
      const text = this.fitting(ctx, this.timeline.tasks[number - 1], width - 8 * ratio);
      if (text) ctx.fillText(text, left + 4 * ratio, bar.top + bar.height / 2 + ratio);
    }
    ctx.textBaseline = "alphabetic";
  }

  fitting(ctx, text, width) {
    if (ctx.measureText(text).width <= width) return text;
    const letters = Math.floor(text.length * width / ctx.measureText(text).width) - 1;
    return letters >= 3 ? `${text.slice(0, letters)}…` : "";
  }

  drawWakes(ctx, bbox, x, ratio) {
    const [from, to] = this.view;
    const { wakes } = this;
    const [first, last] = [lowerBound(wakes.at, from), lowerBound(wakes.at, to)];
    this.arrows = 0;
    if (last - first > MOST_ARROWS) return;
    const place = new Map(this.shown.map((index, at) => [index, at]));
    ctx.strokeStyle = ctx.fillStyle = this.colors.arrow;
    ctx.lineWidth = 1.2 * ratio;
    const middle = (at) => this.top(bbox, at, ratio) + (BAR_TOP + BAR_HEIGHT / 2) * ratio;
    for (let i = first; i < last; i++) {
      const target = place.get(wakes.to[i]);
      if (target === undefined || !this.exactLanes.has(wakes.to[i])) continue;
      const source = place.get(wakes.from[i]);
      const at = x(wakes.at[i]);
      const tip = middle(target);
      // The arrow begins at the waker's lane. If the waker has no lane, it is a short arrow from above.
      const tail = source === undefined ? tip - 16 * ratio : middle(source);
      if (source === target) continue;
      const down = tip > tail ? 1 : -1;
      ctx.beginPath();
      ctx.moveTo(at, tail);
      ctx.lineTo(at, tip - down * 4 * ratio);
      ctx.stroke();
      ctx.beginPath();
      ctx.moveTo(at, tip);
      ctx.lineTo(at - 4 * ratio, tip - down * 7 * ratio);
      ctx.lineTo(at + 4 * ratio, tip - down * 7 * ratio);
      ctx.fill();
      this.arrows++;
    }
  }

  taskName(number) {
    return number > 0 ? this.timeline.tasks[number - 1] : "";
  }

  // Describes what is under the cursor.
  read() {
    if (this.cursor === null || this.shown.length === 0) return;
    const index = this.shown[Math.min(this.chosen, this.shown.length - 1)];
    const lane = this.lanes[index];
    const at = this.cursor;
    const thread = `${lane.name} ${lane.tid} at ${duration(at)}`;
    const exact = this.timeline.exact.some(([from, to]) => from <= at && at <= to);
    const text = exact ? this.readSpan(lane, at, index) : this.readCell(lane, at);
    this.reading.textContent = `${thread}: ${text}`;
  }

  readSpan(lane, at, index) {
    const { start, end, state, type, cpu, task } = lane.intervals;
    const i = lowerBound(end, at);
    if (i >= start.length || start[i] > at) return "no information";
    const doing = this.timeline.classes[type[i]];
    const words = [`${STATE_NAMES[state[i]]} for ${duration(end[i] - start[i])}`];
    if (state[i] === 0) {
      if (cpu[i] >= 0) words[0] += ` (CPU ${cpu[i]})`;
      if (doing) words.push(`then ${doing}`);
    } else if (doing) words.push(doing);
    if (task[i] > 0) words.push(`task ${this.taskName(task[i])}`);
    const { wakes } = this;
    for (let w = lowerBound(wakes.at, start[i]); state[i] > 0 && w < wakes.at.length && wakes.at[w] <= end[i]; w++) {
      if (wakes.to[w] !== index) continue;
      const by = wakes.from[w] >= 0 ? this.lanes[wakes.from[w]] : null;
      const waker = by ? `${by.name} ${by.tid}` : ORIGINS[wakes.origin[w]] ?? ORIGINS[0];
      words.push(`woken by ${waker}${wakes.task[w] > 0 ? ` in ${this.taskName(wakes.task[w])}` : ""}`);
      break;
    }
    return words.join(", ");
  }

  readCell(lane, at) {
    const [from, to] = this.view;
    const cell = this.timeline.cell_ns;
    const pixels = (this.plot.bbox.width) / (to - from);
    const level = Math.max(0, Math.ceil(Math.log2(1.5 / (cell * pixels))));
    const cells = lane.levels.at(level);
    const length = cell * 2 ** level;
    const i = Math.floor((at - this.timeline.cells_from_ns) / length) - cells.first;
    if (i < 0 || i >= cells.count) return "the thread did not exist";
    const parts = STATES.map((_, state) => [cells.shares[i * 5 + state] / 255, STATE_NAMES[state]])
      .filter(([share]) => share > 0.005).sort((a, b) => b[0] - a[0]).map(([share, name]) => `${name} ${Math.round(100 * share)} %`);
    const task = cells.tasks[i] > 0 ? `, mostly in ${this.taskName(cells.tasks[i])}` : "";
    return `${parts.join(", ") || "no information"}; ${thousands(cells.switches[i])} kernel switches in ${duration(length)}${task}`;
  }

  // Moves the cursor to the next or the previous interval of the chosen lane.
  step(direction) {
    const lane = this.lanes[this.shown[this.chosen]];
    const { start, end } = lane.intervals;
    const at = this.cursor ?? this.view[0];
    const here = lowerBound(end, at);
    const next = direction > 0 ? (start[here] !== undefined && start[here] > at ? here : here + 1) : here - 1;
    if (next < 0 || next >= start.length) return;
    this.cursor = (start[next] + end[next]) / 2;
    const length = this.view[1] - this.view[0];
    if (this.cursor < this.view[0] || this.cursor > this.view[1]) this.show(this.cursor - length / 2, this.cursor + length / 2);
    requestAnimationFrame(() => this.pointAtCursor());
  }

  pointAtCursor() {
    const left = this.plot.valToPos(this.cursor, "x");
    this.plot.setCursor({ left, top: 10 + (this.chosen + 0.5) * LANE_HEIGHT });
  }
}

function fillTimeline() {
  const box = byId("lanes");
  const timeline = data.timeline.here;
  if (!timeline) {
    box.append(missing(data.timeline.missing));
    return;
  }
  box.append(make("p", { class: "intro" },
    "Each thread has a lane. If many switches fall into one pixel, the heights of the colours show the shares of the time. After zooming in, each " +
    "interval is drawn by itself, with the task that was polled at its end, and with an arrow for each wakeup."));
  box.append(make("ul", { class: "legend" }, ...STATES.map((state, index) =>
    make("li", { title: STATE_HELP[index] }, make("span", { class: "swatch", style: { background: `var(--${state})` } }), STATE_NAMES[index]))));
  const controls = make("div", { class: "controls" });
  const shownText = make("span", { class: "muted", id: "lane-shown", role: "status" });
  const reading = make("p", { id: "lane-reading", "aria-live": "polite" }, "Point at a lane, or touch it, to read the details.");
  const canvas = make("div", {
    id: "lane-box",
    tabindex: "0",
    role: "application",
    "aria-roledescription": "timeline",
    "aria-label": `Timeline of ${timeline.lanes.length} threads over ${duration(timeline.length_ns)}. Arrow keys move, plus and minus zoom.`,
    "aria-describedby": "lane-keys",
  });
  const keys = make("p", { class: "keys", id: "lane-keys" });
  const key = (name) => make("kbd", {}, name);
  keys.append("Drag to zoom in, double-click to show everything, ", key("Ctrl"), " and wheel to zoom, ", key("Shift"), " and wheel to move. Keys: ",
    key("←"), " ", key("→"), " move, ", key("+"), " ", key("−"), " zoom, ", key("0"), " show everything, ", key("↑"), " ", key("↓"), " another thread, ",
    key(","), " ", key("."), " its previous and next interval.");
  box.append(controls, make("div", { class: "card" }, canvas, reading), keys, ...timeline.notes.map(note));

  whenSeen(box, () => {
    const view = new TimelineView(timeline, canvas, reading, shownText);
    // Used by the tests. It can also be inspected in the browser's console.
    window.ctxtraceTimeline = view;
    const button = (text, label, act) => make("button", { type: "button", "aria-label": label, on: { click: act } }, text);
    controls.append(
      make("div", { class: "joined", role: "group", "aria-label": "Move and zoom" },
        button("←", "Move to the left", () => view.pan(-0.5)),
        button("−", "Zoom out", () => view.zoom(2.5)),
        button("+", "Zoom in", () => view.zoom(0.4)),
        button("→", "Move to the right", () => view.pan(0.5)),
        button("All", "All: show the whole recording", () => view.show(...view.whole))));
    if (timeline.moments.length > 0) {
      const select = make("select", { id: "moments" }, make("option", { value: "" }, "go to one of the longest …"),
        ...timeline.moments.map((moment, index) => make("option", { value: String(index) }, moment.text)));
      select.addEventListener("change", () => {
        const moment = timeline.moments[Number(select.value)];
        if (select.value === "" || !moment) return;
        if (!view.shown.includes(moment.lane)) toggle.click();
        view.chosen = view.shown.indexOf(moment.lane);
        view.cursor = (moment.from_ns + moment.to_ns) / 2;
        const margin = (moment.to_ns - moment.from_ns) * 0.2;
        view.show(moment.from_ns - margin, moment.to_ns + margin);
        requestAnimationFrame(() => requestAnimationFrame(() => view.pointAtCursor()));
      });
      controls.append(make("label", {}, "Longest waits", select));
    }
    const toggle = make("button", { type: "button", "aria-expanded": "false" }, `Show all ${view.lanes.length} threads`);
    toggle.hidden = view.lanes.length <= LANES_AT_FIRST;
    toggle.addEventListener("click", () => {
      view.showAll = !view.showAll;
      view.chosen = 0;
      toggle.setAttribute("aria-expanded", String(view.showAll));
      toggle.textContent = view.showAll ? `Show the ${LANES_AT_FIRST} busiest threads` : `Show all ${view.lanes.length} threads`;
      view.build();
    });
    controls.append(toggle, make("span", { class: "spacer" }), shownText);
    onRedraw(() => view.build());
    listen(canvas, view);
  });
}

function listen(box, view) {
  box.addEventListener("wheel", (event) => {
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const left = event.clientX - view.plot.rect.left;
      view.zoom(1.0025 ** event.deltaY, view.plot.posToVal(left, "x"));
    } else if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY)) {
      event.preventDefault();
      view.pan(sideways / box.clientWidth);
    }
  }, { passive: false });
  box.addEventListener("focus", () => view.plot.redraw(false));
  box.addEventListener("blur", () => view.plot.redraw(false));
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const lanes = view.shown.length;
    const choose = (by) => {
      view.chosen = (view.chosen + by + lanes) % lanes;
      view.cursor ??= (view.view[0] + view.view[1]) / 2;
      view.pointAtCursor();
      view.plot.redraw(false);
    };
    const act = {
      ArrowLeft: () => view.pan(-0.2),
      ArrowRight: () => view.pan(0.2),
      ArrowUp: () => choose(-1),
      ArrowDown: () => choose(1),
      "+": () => view.zoom(0.5),
      "=": () => view.zoom(0.5),
      "-": () => view.zoom(2),
      "0": () => view.show(...view.whole),
      Home: () => view.show(...view.whole),
      ".": () => view.step(1),
      ",": () => view.step(-1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  // Touch input: one finger moves, two fingers zoom, and a tap shows the details.
  const touches = new Map();
  box.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") touches.set(event.pointerId, event.clientX);
  });
  box.addEventListener("pointermove", (event) => {
    if (!touches.has(event.pointerId)) return;
    const before = [...touches.values()];
    const moved = event.clientX - touches.get(event.pointerId);
    touches.set(event.pointerId, event.clientX);
    if (touches.size === 1) {
      view.pan(-moved / box.clientWidth);
    } else if (touches.size === 2) {
      const after = [...touches.values()];
      const [was, is] = [Math.abs(before[0] - before[1]), Math.abs(after[0] - after[1])];
      const middle = (after[0] + after[1]) / 2 - view.plot.rect.left;
      if (was > 10 && is > 10) view.zoom(was / is, view.plot.posToVal(middle, "x"));
    }
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    box.addEventListener(name, (event) => touches.delete(event.pointerId));
  }
}

// Draws the distributions. All plots have the same logarithmic axis.

function fillLatency() {
  const plots = data.distributions;
  const drawn = plots.filter((plot) => plot.bins.length > 0);
  const least = Math.min(...drawn.map((plot) => plot.bins[0][0]));
  const most = Math.max(...drawn.map((plot) => plot.bins[plot.bins.length - 1][1]));
  const range = [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most + 1))];
  let by = "count";
  let charts = [];

  for (const plot of plots) {
    plot.canvas = make("div", { class: "canvas" });
    plot.reading = make("p", { class: "reading" });
    byId("plots").append(make("figure", { class: "plot card" },
      make("figcaption", {}, make("h3", {}, plot.name), make("p", {}, plot.meaning)), plot.canvas, plot.reading));
    if (plot.bins.length === 0) {
      plot.canvas.append(note(plot.count === 0 ? "There were no intervals." : "All intervals were 0 ns."));
    }
  }

  // The corners of a step plot: each value in `ys` is the share in percent from the time in `xs` up to the next one.
  function steps(plot) {
    const weight = ([from, to, count]) => (by === "count" ? count : count * (from + to) / 2);
    const sum = plot.bins.reduce((sum, bin) => sum + weight(bin), 0);
    const total = by === "count" ? plot.count : sum;
    const [xs, ys] = [[], []];
    for (const bin of plot.bins) {
      if (xs.length > 0 && xs[xs.length - 1] === bin[0]) {
        ys[ys.length - 1] = 100 * weight(bin) / total;
      } else {
        xs.push(bin[0]);
        ys.push(100 * weight(bin) / total);
      }
      xs.push(bin[1] + 1);
      ys.push(0);
    }
    return [xs, ys];
  }

  function rest(plot) {
    const parts = [`${thousands(plot.count)} intervals`];
    if (plot.zeros > 0) parts.push(`${percent(plot.zeros / plot.count)} were 0 ns and are not drawn`);
    return plot.count > 0 ? parts.join("; ") : "";
  }

  function drawPercentiles(u, plot) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.fillStyle = ctx.strokeStyle = color("text");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    let free = bbox.left - 1;
    for (const [name, ns] of plot.percentiles) {
      if (ns < range[0]) continue;
      const x = u.valToPos(ns, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(name).width;
      const at = Math.min(x - width / 2, bbox.left + bbox.width - width);
      if (at > free) {
        ctx.fillText(name, at, bbox.top - 4 * devicePixelRatio);
        free = at + width + 4 * devicePixelRatio;
      }
    }
    ctx.restore();
  }

  function chart(plot) {
    const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const isPower = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;
    const powers = (u, splits) => splits.map((value) => (isPower(value) ? value : null));
    const decades = Math.log10(range[1] / range[0]);
    const every = Math.max(1, Math.ceil(decades * 48 / plot.canvas.clientWidth));
    const shown = (value) => isPower(value) && Math.round(Math.log10(value / range[0])) % every === 0;
    const figures = plot.percentiles.map(([name, , text]) => `${name} ${text}`).join(", ");
    plot.canvas.setAttribute("role", "img");
    plot.canvas.setAttribute("aria-label", `Distribution of ${plot.name}: ${figures}`);
    const data = steps(plot);
    return new uPlot({
      width: plot.canvas.clientWidth,
      height: 190,
      padding: [18, 22, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: {
        x: { time: false, distr: 3, range: () => range },
        y: { range: (u, min, max) => [0, max * 1.05 || 1] },
      },
      axes: [
        {
          ...axis,
          size: 34,
          filter: powers,
          grid: { ...axis.grid, filter: powers },
          ticks: { ...axis.ticks, filter: powers },
          values: (u, splits) => splits.map((value) => (value !== null && shown(value) ? duration(value).replace(/\.0+ /, " ") : "")),
        },
        { ...axis, size: 48, values: (u, splits) => splits.map((value) => `${Number(value.toPrecision(3))} %`) },
      ],
      series: [{}, {
        stroke: color("on-cpu"),
        fill: `${color("on-cpu")}55`,
        width: 1.5,
        paths: uPlot.paths.stepped({ align: 1 }),
        points: { show: false },
      }],
      hooks: {
        draw: [(u) => drawPercentiles(u, plot)],
        setCursor: [(u) => {
          const ns = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
          plot.reading.textContent = ns === null ? rest(plot) : reading(plot, ns);
        }],
      },
    }, data, plot.canvas);
  }

  function reading(plot, ns) {
    let below = plot.zeros;
    for (const [from, to, count] of plot.bins) {
      if (ns >= to) below += count;
      else if (ns > from) below += count * (ns - from) / (to - from + 1);
    }
    return `${percent(below / plot.count)} of the intervals are shorter than ${duration(ns)}`;
  }

  function draw() {
    for (const chart of charts) chart.destroy();
    charts = drawn.map(chart);
    for (const plot of plots) plot.reading.textContent = rest(plot);
  }

  for (const button of document.querySelectorAll("[data-latency]")) {
    button.addEventListener("click", () => {
      by = button.getAttribute("data-latency");
      for (const other of document.querySelectorAll("[data-latency]")) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  byId("latency-figures").append(...sortable(data.latency).filter(Boolean));
  whenSeen(byId("plots"), () => {
    draw();
    onRedraw(draw);
  });
}

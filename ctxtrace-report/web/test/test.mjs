// Opens the HTML reports of a folder in a headless Chromium and uses them as a user would: `node test.mjs FOLDER`. Fails on any message on
// the console, on any violation that axe rates serious or critical, and on anything that does not work as expected. Screenshots are saved
// in the same folder.
import assert from "node:assert/strict";
import { readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const folder = resolve(process.argv[2]);
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const WIDTHS = [[1280, 900], [390, 844]];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

async function open(file, width, height, colorScheme) {
  // The page's content security policy stays active. It forbids further script elements, so axe is evaluated in the page instead.
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, bypassCSP: false, offline: true });
  const page = await context.newPage();
  page.complaints = [];
  page.on("console", (message) => page.complaints.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => page.complaints.push(error.stack));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) page.complaints.push(`the page requested ${request.url()}`);
  });
  page.on("dialog", (dialog) => page.complaints.push(`the page opened a dialog: ${dialog.message()}`));
  await page.goto(pathToFileURL(join(folder, file)).href);
  return page;
}

const quiet = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)))));

async function seeAll(page) {
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  for (let top = 0; top < height; top += 600) {
    await page.evaluate((top) => scrollTo({ top, behavior: "instant" }), top);
    await quiet(page);
  }
  await page.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
  await quiet(page);
}

async function checkWithAxe(page, what) {
  const source = (await import("node:fs")).readFileSync(axe, "utf8");
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => axe.run());
  const bad = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const words = bad.map(({ id, help, nodes }) => `${id} (${help}): ${nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ")}`);
  assert.deepEqual(words, [], `axe, ${what}`);
}

async function useTable(page) {
  const threads = page.locator("#threads");
  const head = threads.locator("thead th").filter({ hasText: "id" }).first();
  const column = () => threads.locator("tbody td:nth-child(2)").allTextContents();
  await head.locator("button").click();
  assert.equal(await head.getAttribute("aria-sort"), "descending");
  const down = (await column()).map(Number);
  assert.deepEqual(down, [...down].sort((a, b) => b - a));
  await head.locator("button").press("Enter");
  assert.equal(await head.getAttribute("aria-sort"), "ascending");
  const up = (await column()).map(Number);
  assert.deepEqual(up, [...up].sort((a, b) => a - b));
}

async function useTheme(page) {
  const theme = () => page.evaluate(() => [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]);
  const before = await theme();
  await page.click("#theme");
  const after = await theme();
  assert.notEqual(before[0], after[0]);
  assert.notEqual(before[1], after[1]);
}

async function useLatency(page) {
  const canvases = page.locator("#plots canvas");
  await page.locator("#plots").scrollIntoViewIfNeeded();
  await quiet(page);
  if (await canvases.count() === 0) return;
  const before = await canvases.first().evaluate((canvas) => canvas.toDataURL());
  await page.click('[data-latency="time"]');
  await quiet(page);
  assert.notEqual(before, await canvases.first().evaluate((canvas) => canvas.toDataURL()));
}

async function useTimeline(page) {
  const box = page.locator("#lane-box");
  await page.locator("#timeline").scrollIntoViewIfNeeded();
  if (await box.count() === 0) {
    assert.match(await page.locator("#timeline .missing").textContent(), /--level timeline/);
    return false;
  }
  await box.locator("canvas").waitFor();
  await box.scrollIntoViewIfNeeded();
  await quiet(page);
  const view = () => page.evaluate(() => ctxtraceTimeline.view);
  const picture = () => box.locator("canvas").evaluate((canvas) => canvas.toDataURL());
  const [whole, first] = [await view(), await picture()];
  // Zoom by buttons, keys, dragging and the wheel.
  await page.getByRole("button", { name: "Zoom in" }).click();
  await quiet(page);
  const nearer = await view();
  assert.ok(nearer[1] - nearer[0] < 0.5 * (whole[1] - whole[0]));
  assert.notEqual(first, await picture());
  await box.focus();
  await page.keyboard.press("+");
  await quiet(page);
  const nearest = await view();
  assert.ok(nearest[1] - nearest[0] < nearer[1] - nearer[0]);
  await page.keyboard.press("ArrowRight");
  await quiet(page);
  assert.ok((await view())[0] > nearest[0]);
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press(".");
  await quiet(page);
  assert.ok((await page.locator("#lane-reading").textContent()).length > 20);
  await page.keyboard.press("0");
  await quiet(page);
  assert.deepEqual(await view(), whole);
  const area = await box.locator(".u-over").boundingBox();
  await page.mouse.move(area.x + area.width * 0.3, area.y + 30);
  await page.mouse.down();
  await page.mouse.move(area.x + area.width * 0.5, area.y + 30, { steps: 4 });
  await page.mouse.up();
  await quiet(page);
  const dragged = await view();
  assert.ok(Math.abs((dragged[1] - dragged[0]) / (whole[1] - whole[0]) - 0.2) < 0.05, `${dragged} of ${whole}`);
  await page.keyboard.down("Control");
  await page.mouse.wheel(0, -300);
  await page.keyboard.up("Control");
  await quiet(page);
  assert.ok((await view())[1] - (await view())[0] < dragged[1] - dragged[0]);
  // Where single intervals are kept, zooming in far enough draws each interval, and an arrow for each wakeup.
  const arrows = await page.evaluate(async () => {
    const timeline = ctxtraceTimeline;
    const [from, to] = timeline.timeline.exact[Math.floor(timeline.timeline.exact.length / 2)];
    const at = timeline.wakes.at.find((at) => at >= from && at <= to);
    if (at === undefined) return null;
    timeline.show(at - 40000, at + 40000);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))));
    return timeline.arrows;
  });
  return arrows;
}

async function useFlames(page, ids) {
  await page.locator("#flames").scrollIntoViewIfNeeded();
  await quiet(page);
  for (const id of ids) {
    await page.locator(`#flames [data-value="${id}"]`).click();
    await quiet(page);
    const box = page.locator("#flames .flame");
    const frames = await box.locator("g").count();
    assert.ok(frames > 3, `${frames} frames of ${id}`);
    const search = page.locator("#flames input[type=search]");
    await search.fill("main");
    assert.match(await page.locator("#flames [role=status]").textContent(), /%.*frames/);
    const marked = () => box.locator('rect[fill="#e83fd0"]').count();
    assert.ok(await marked() > 0, "the frames that were found are marked");
    // A text that would be an invalid regular expression is searched for as plain text.
    await search.fill("(((");
    assert.equal(await page.locator("#flames [role=status]").textContent(), "not found");
    await search.fill("");
    assert.equal(await marked(), 0);
    // Moves to a frame with a sibling and zooms in, by keys.
    await box.focus();
    for (const key of ["ArrowDown", "ArrowDown", "Enter"]) await page.keyboard.press(key);
    await quiet(page);
    assert.match(await page.locator("#flames .flame-reading").textContent(), /%/);
    await page.keyboard.press("Escape");
    await box.locator("g").nth(1).click();
    await quiet(page);
    await page.locator('#flames [data-value="count"]').click();
    await quiet(page);
  }
}

try {
  const files = readdirSync(folder).filter((name) => name.endsWith(".html"));
  assert.ok(files.length >= 5, "the folder has at least five reports");
  for (const file of files) {
    const name = file.replace(".html", "");
    for (const [width, height] of WIDTHS) {
      for (const scheme of ["light", "dark"]) {
        const page = await open(file, width, height, scheme);
        assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), scheme);
        await seeAll(page);
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0, `${name}: the page is wider than ${width} px`);
        await page.screenshot({ path: join(folder, `${name}-${width}-${scheme}.png`), fullPage: true });
        await checkWithAxe(page, `${name}, ${width} px, ${scheme}`);
        assert.deepEqual(page.complaints, [], `${name}, ${width} px, ${scheme}`);
        await page.context().close();
      }
    }
    const page = await open(file, 1280, 900, "light");
    await useTable(page);
    await useTheme(page);
    await useLatency(page);
    const arrows = await useTimeline(page);
    if (name === "drawn" || name === "five-million") assert.ok(arrows > 5, `${arrows} arrows`);
    if (arrows !== false) await page.locator("#timeline").screenshot({ path: join(folder, `${name}-zoomed.png`) });
    await useFlames(page, { stacks: ["off-cpu"], drawn: ["off-cpu", "on-cpu"] }[name] ?? []);
    await checkWithAxe(page, `${name}, after use`);
    assert.deepEqual(page.complaints, [], `${name}, used`);
    await page.context().close();
    console.log(`${file}: all tests passed`);
  }

  // The speed of a long report. The size and the time to open have limits, with a margin for slow machines; the times of panning are only
  // printed.
  const before = performance.now();
  const page = await open("five-million.html", 1280, 900, "light");
  await page.evaluate(() => document.getElementById("timeline").scrollIntoView());
  await page.locator("#lane-box canvas").waitFor();
  await quiet(page);
  const opened = performance.now() - before;
  const pans = await page.evaluate(async () => {
    const timeline = ctxtraceTimeline;
    const times = [];
    for (const part of [1, 0.3, 0.05, 0.001]) {
      timeline.show(0, timeline.whole[1] * part);
      for (let i = 0; i < 20; i++) {
        const from = performance.now();
        timeline.pan(0.05);
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        times.push(performance.now() - from);
      }
    }
    return times.sort((a, b) => a - b);
  });
  const size = statSync(join(folder, "five-million.html")).size;
  console.log(`five million events: ${(size / 1e6).toFixed(2)} MB, visible after ${Math.round(opened)} ms; a step of panning takes `
    + `${pans[pans.length >> 1].toFixed(1)} ms (median), ${pans[pans.length - 1].toFixed(1)} ms (longest)`);
  assert.ok(size < 8e6, `${size} bytes`);
  assert.ok(opened < 3000, `${opened} ms`);
} finally {
  await browser.close();
}

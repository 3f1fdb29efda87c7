/* The page: parts that are made once and told again what the data are. */

let data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const several = () => data.runs.length > 1;
const METRICS = [
  ["noise_loss", "noise loss", "mean absolute error of the noise", true],
  ["image_loss", "image loss", "mean absolute error of the picture", true],
  ["loss", "training loss", "what the optimiser lowers", true],
  ["lr", "learning rate", "learning rate", false],
  ["grad_norm", "gradient norm", "norm of the gradients before clipping", true],
  ["images_per_second", "images/s", "pictures a second", false],
];
const parts = [];
/** A part of the page: its element, and what brings it up to date. */
function part(node, update) {
  parts.push(update);
  return node;
}
/** What `make` gives, made anew only where `key` has changed. */
function kept(node, key, make) {
  let last;
  return () => {
    const now = JSON.stringify(key());
    if (now === last) return;
    last = now;
    node.replaceChildren(...[make()].flat().filter(Boolean));
  };
}
function copyButton(text) {
  const button = el("button", { type: "button", onclick: copy }, "Copy");
  async function copy() {
    let done = true;
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      // Pages from files have no clipboard in some browsers; a selection has one everywhere.
      const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
      area.value = text();
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    button.textContent = done ? "Copied" : "Not copied: select the text";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  }
  return button;
}
function card(title, note, ...children) {
  return el("section", { class: "card", "aria-label": title }, el("header", {}, el("h2", {}, title), note && el("p", { class: "soft" }, note)), children);
}

/* ---- What this is about ---- */

function lead(run) {
  if (run.status === "starting") return "The program is reading the pictures; curves come with the first steps.";
  const network = `A network of ${grouped(run.parameters || 0)} parameters`;
  const pictures = (run.facts.find(([term]) => term === "Pictures") || ["", ""])[1].split(",")[0];
  const done = run.status === "finished" ? "trained" : run.status === "running" ? "being trained, so far" : "trained, until it was stopped,";
  const device = run.device ? ` on ${run.device}` : "";
  return `${network}, ${done} for ${grouped(run.steps)} steps of ${run.batch} pictures (${pictures}, ${run.image_size} × ${run.image_size})${device} in ${duration(run.seconds)}.`;
}
function head() {
  const node = el("header", {});
  const update = kept(node, () => [data.title, data.notes, data.runs.map((r) => [r.progress, r.status, r.device, r.seconds])], () => {
    const runs = data.runs, counts = new Map();
    runs.forEach((run) => counts.set(run.status, (counts.get(run.status) || 0) + 1));
    const states = several()
      ? [...counts].map(([status, count]) => el("span", { class: `status ${status}` }, `${count} ${status}`))
      : [el("span", { class: `status ${runs[0].status}` }, runs[0].progress)];
    const remaining = (run) => {
      const rate = run.steps > 0 ? run.seconds / run.steps : null;
      return rate && run.total_steps > run.steps ? `, about ${duration(rate * (run.total_steps - run.steps))} left` : "";
    };
    const going = several() ? [] : runs.filter((r) => r.status === "running" && r.total_steps);
    return [
      el("p", { class: "eyebrow" }, data.live ? "ddim-engine · live" : "ddim-engine · report"),
      el("h1", {}, data.title),
      el("p", { class: "lead" }, several() ? runs.map((r) => r.name).join(", ") : lead(runs[0])),
      el("div", { class: "states" }, states, el("span", { class: "status stopped", id: "lost", hidden: !lost }, "no answer from the program: what it last said is shown")),
      ...going.map((run) => {
        const bar = el("i", {}), share = (100 * run.steps) / run.total_steps;
        bar.style.width = `${share}%`;
        return el("div", { role: "progressbar", "aria-label": "Training", "aria-valuenow": Math.round(share), "aria-valuemin": 0, "aria-valuemax": 100 },
          el("div", { class: "bar" }, bar), el("p", { class: "soft" }, `${share.toFixed(1)} %${remaining(run)}`));
      }),
      ...data.notes.map((note) => el("p", { class: "note" }, note)),
    ];
  });
  return part(node, update);
}
function tiles() {
  const node = el("div", { class: "tiles" });
  const tile = (value, text) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, text));
  return part(node, kept(node, () => data.runs, () => {
    const run = data.runs[0];
    if (several() || run.status === "starting") return [];
    const [, valid] = run.valid || [];
    const last = (name) => run.train[name].value.at(-1);
    const quality = run.evaluation && run.evaluation.quality;
    const made = [];
    if (valid) made.push(tile(short(valid[1]), "noise loss, pictures held back"), tile(short(valid[2]), "image loss, pictures held back"));
    else made.push(tile(short(last("noise_loss")), "noise loss, training"), tile(short(last("image_loss")), "image loss, training"));
    if (quality) made.push(tile(short(quality.kid), "KID"), quality.fid != null && tile(short(quality.fid), "FID"));
    made.push(tile(grouped(run.steps), `steps, ${run.epochs} epoch${run.epochs === 1 ? "" : "s"}`), tile(short(run.images_per_second, 3), "images/s"), tile(duration(run.seconds), "of training"));
    return made;
  }));
}
function facts() {
  const node = el("dl", { class: "facts" });
  const section = card("What was trained on what", null, node);
  const update = kept(node, () => [data.runs[0].facts, data.runs[0].device, data.runs[0].progress], () => {
    const run = data.runs[0];
    const device = run.device || (run.status === "finished" ? null : "known when the run has ended");
    return [...run.facts, ["Training", run.progress], ...(device ? [["Device", device]] : [])].flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]);
  });
  return part(section, () => {
    section.hidden = several() || !data.runs[0].facts.length;
    update();
  });
}

/* ---- Pictures ---- */

function samples() {
  const grids = el("div", { class: "grids" });
  const slider = el("input", { type: "range", min: 0, step: 1, "aria-label": "Epoch of the sample pictures", oninput: () => show(Number(slider.value)) });
  const told = el("output", { "aria-live": "polite" });
  const play = el("button", { class: "round", type: "button", onclick: toggle });
  const player = el("div", { class: "player" }, play, slider, told);
  const note = el("p", { class: "soft" });
  const section = card("Samples through the epochs", "always from the same noise", grids, player, note);
  let epochs = [], at = -1, timer = null, figures = [];

  function icon() {
    play.replaceChildren(svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: timer ? "M4 3h4v14H4zM12 3h4v14h-4z" : "M5 2.5v15l12-7.5z" })));
    play.setAttribute("aria-label", timer ? "Pause" : "Play through the epochs");
  }
  function toggle() {
    if (timer) return stop();
    if (at >= epochs.length - 1) show(0);
    timer = setInterval(() => (at >= epochs.length - 1 ? stop() : show(at + 1)), Math.max(90, Math.min(600, 9000 / epochs.length)));
    icon();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    icon();
  }
  /** The grid of a run at an epoch: the newest of those up to it. */
  const frameOf = (run, epoch) => run.samples.frames.filter((f) => f.epoch <= epoch).at(-1) || run.samples.frames[0];
  function fit({ image, figure, frame }) {
    if (!frame) return;
    const room = figure.clientWidth || 320, scale = Math.floor((room * 1.001) / frame.width);
    // Whole multiples of a pixel look crisp; pictures larger than the room are scaled down by the browser.
    image.classList.toggle("whole", scale >= 1);
    image.style.width = scale >= 1 ? `${frame.width * Math.min(scale, 3)}px` : "100%";
  }
  function show(index) {
    at = Math.max(0, Math.min(epochs.length - 1, index));
    slider.value = at;
    told.textContent = epochs.length ? `epoch ${epochs[at]}` : "";
    slider.setAttribute("aria-valuetext", told.textContent);
    data.runs.forEach((run, i) => {
      const part = figures[i], frame = frameOf(run, epochs[at]);
      part.figure.hidden = !frame;
      if (!frame) return;
      if (part.image.getAttribute("src") !== frame.src) part.image.src = frame.src;
      part.frame = frame;
      part.image.width = frame.width;
      part.image.height = frame.height;
      part.image.alt = `Pictures drawn by ${run.name} after epoch ${frame.epoch}`;
      part.name.textContent = several() ? run.name : "";
      part.epoch.textContent = `epoch ${frame.epoch}`;
      part.caption.hidden = !several();
      fit(part);
    });
  }
  function update() {
    while (figures.length < data.runs.length) {
      const image = el("img", { decoding: "sync" }), name = el("span", {}), epoch = el("span", {});
      const caption = el("figcaption", {}, name, epoch), figure = el("figure", {}, image, caption);
      figures.push({ image, name, epoch, caption, figure });
      grids.append(figure);
    }
    const following = at < 0 || at >= epochs.length - 1;
    const chosen = epochs[at];
    epochs = [...new Set(data.runs.flatMap((run) => run.samples.frames.map((f) => f.epoch)))].sort((a, b) => a - b);
    section.hidden = !epochs.length;
    slider.max = Math.max(0, epochs.length - 1);
    player.hidden = epochs.length < 2;
    const left = data.runs.map((run) => [run, run.samples.total - run.samples.frames.length]).filter(([, count]) => count > 0);
    note.textContent = left.map(([run, count]) => `${several() ? `${run.name}: ` : ""}${run.samples.frames.length} of ${run.samples.total} grids are here, evenly chosen; ${count} were left out to keep the page small.`).join(" ");
    if (epochs.length) show(following && !timer ? epochs.length - 1 : Math.max(0, epochs.indexOf(chosen)));
    icon();
  }
  new ResizeObserver(() => figures.forEach(fit)).observe(grids);
  return part(section, update);
}

/* ---- Curves ---- */

function curves() {
  const view = { metric: null, log: true, smooth: 0.6, axis: "step", off: new Set(), splits: { train: true, held_back: true }, cursor: null, range: null };
  const chart = el("div", { class: "chart", tabindex: 0, role: "slider", "aria-label": "Cursor along the curves", "aria-orientation": "horizontal" });
  const read = el("div", { class: "scroll" });
  const note = el("p", { class: "soft" });
  const choices = el("div", { class: "choices", role: "group", "aria-label": "Quantity" });
  const buttons = METRICS.map(([key, name, about]) => {
    const button = el("button", { type: "button", class: "choice", title: about, "data-metric": key, onclick: () => choose(key) }, name);
    choices.append(button);
    return button;
  });
  const log = el("input", { type: "checkbox", checked: true, onchange: () => ((view.log = log.checked), draw()) });
  const smooth = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: view.smooth, "aria-label": "Smoothing of the training curves", oninput: () => ((view.smooth = Number(smooth.value)), draw()) });
  const axis = el("select", { "aria-label": "Horizontal axis", onchange: () => ((view.axis = axis.value), (view.range = null), draw()) },
    el("option", { value: "step" }, "steps"), el("option", { value: "images" }, "pictures seen"), el("option", { value: "time" }, "time"));
  const reset = el("button", { type: "button", class: "reset", hidden: true, onclick: () => ((view.range = null), draw()) }, "Whole range");
  const section = card("Curves", null, choices,
    el("div", { class: "controls" }, el("label", {}, log, "logarithmic"), el("label", {}, "smoothing", smooth), el("label", {}, "over", axis)), chart, read, note);
  let plot = null, band = null;

  function choose(key) {
    view.metric = key;
    draw();
  }
  function scaleOf(run) {
    if (view.axis === "images") return (step) => step * run.batch;
    if (view.axis === "time") return (step) => along(run.train.seconds.step.length ? run.train.seconds : run.held_back.seconds, step) / unit().seconds;
    return (step) => step;
  }
  function unit() {
    const most = Math.max(...data.runs.map((run) => run.seconds || 0));
    return most > 7200 ? { seconds: 3600, name: "hours" } : most > 180 ? { seconds: 60, name: "minutes" } : { seconds: 1, name: "seconds" };
  }
  const xName = () => ({ step: "steps", images: "pictures seen", time: unit().name })[view.axis];
  /** The curves in view: run, split, points. */
  function shown() {
    const lines = [];
    data.runs.forEach((run, number) => {
      if (view.off.has(number)) return;
      const scale = scaleOf(run);
      for (const split of ["train", "held_back"]) {
        const series = run[split][view.metric];
        if (!view.splits[split] || !series.step.length || (split === "held_back" && ["lr", "images_per_second"].includes(view.metric))) continue;
        const xs = series.step.map(scale), held = split === "held_back";
        const smoothing = !held && view.smooth > 0 && view.metric !== "lr" && series.step.length > 8;
        const raw = series.value.map((v, i) => [xs[i], v]);
        const points = smoothing ? smoothed(series.value, view.smooth).map((v, i) => [xs[i], v]) : raw;
        lines.push({ run, number, split, series, held, scale, colour: several() ? number : held ? 1 : 0, points, raw: smoothing ? raw : null });
      }
    });
    return lines;
  }
  function draw() {
    const has = (key) => data.runs.some((run) => run.train[key] && (run.train[key].value.length || run.held_back[key].value.length));
    buttons.forEach((button) => (button.hidden = !has(button.dataset.metric)));
    if (!view.metric || !has(view.metric)) view.metric = (METRICS.find(([key]) => has(key)) || METRICS[0])[0];
    buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.metric === view.metric));
    const [, name, about, canLog] = METRICS.find(([key]) => key === view.metric);
    log.disabled = !canLog;
    const lines = shown(), width = Math.max(240, chart.clientWidth || 640);
    const usable = lines.flatMap((line) => line.points).filter(([, y]) => y != null);
    if (!usable.length) {
      plot = null;
      chart.replaceChildren(el("p", { class: "soft" }, has(view.metric) ? "All curves are switched off." : "No losses yet: they come every 10 steps."));
    } else {
      plot = lineChart(lines, { width, height: Math.round(Math.max(260, Math.min(420, width * 0.46))), log: view.log && canLog && usable.some(([, y]) => y > 0), range: view.range, xLabel: xName(), yLabel: about });
      plot.lines = lines;
      chart.replaceChildren(plot.drawing, reset);
    }
    reset.hidden = !view.range;
    chart.setAttribute("aria-label", `${name} over ${xName()}: arrow keys move a cursor along the curves`);
    const thinned = data.runs.filter((run) => run.thinned);
    note.textContent = [
      thinned.length ? `Curves of more records than fit are drawn with at most ${grouped(Math.max(...thinned.map((run) => run.thinned)))} points, every peak among them.` : "",
      data.differing.some(([key]) => ["schedule", "min_signal_rate", "max_signal_rate", "zero_snr"].includes(key)) ? "Noise and image losses of different schedules are not comparable." : "",
    ].filter(Boolean).join(" ");
    point();
  }
  /** The values at the cursor, or the last ones. */
  function point() {
    if (plot) plot.overlay.replaceChildren();
    const at = view.cursor;
    const values = new Map();
    let step = null, shownRun = null;
    for (const line of plot ? plot.lines : []) {
      if (!line.points.length) continue;
      let index = line.points.length - 1;
      if (at != null) index = nearest(line.points.map(([x]) => x), at);
      values.set(`${line.number} ${line.split}`, line.series.value[index]);
      if (step == null || line.split === "train") [step, shownRun] = [line.series.step[index], line.run];
      const [x, y] = line.points[index];
      if (at != null && plot.usable([x, y]) && x >= plot.bounds[0] && x <= plot.bounds[1]) plot.overlay.append(svg("circle", { class: "dot", colour: line.colour, cx: plot.toX(x), cy: plot.toY(y), r: 4.5 }));
    }
    if (at != null && plot) plot.overlay.prepend(svg("line", { class: "cursor", x1: plot.toX(at), x2: plot.toX(at), y1: plot.top, y2: plot.base }));
    if (band && plot) plot.overlay.append(svg("rect", { class: "band", x: Math.min(...band), width: Math.abs(band[1] - band[0]), y: plot.top, height: plot.base - plot.top }));
    let where = "last values";
    if (at != null && shownRun) {
      const epoch = along(shownRun.train.epoch, step), seconds = along(shownRun.train.seconds, step);
      where = view.axis === "step" || !several() ? `step ${grouped(step)}` : `${short(at)} ${xName()}`;
      if (!several()) where += `, epoch ${Math.ceil(epoch || 1)}, ${duration(seconds)}`;
    }
    table(where, values);
    const [low, high] = plot ? plot.bounds : [0, 1];
    const text = [...values].map(([key, v]) => `${several() ? `${data.runs[key.split(" ")[0]].name} ` : ""}${key.endsWith("train") ? "training" : "held back"} ${short(v)}`).join(", ");
    for (const [name, value] of [["valuemin", low], ["valuemax", high], ["valuenow", at ?? high], ["valuetext", `${where}: ${text}`]]) chart.setAttribute(`aria-${name}`, value);
  }
  let cells = null;
  /** The read-out is the legend too: its heads switch runs and splits. */
  function table(where, values) {
    const key = data.runs.map((run) => run.name).join("\n");
    if (!cells || cells.key !== key) {
      cells = { key, where: el("span", {}), values: new Map(), toggles: [] };
      const toggle = (attributes, text, is, flip) => {
        const button = el("button", { type: "button", ...attributes, onclick: () => (flip(), draw()) }, text);
        cells.toggles.push([button, is]);
        return button;
      };
      const split = (name, kind, text, number) => toggle({ class: `toggle ${kind}`, colour: number }, text, () => view.splits[name], () => (view.splits[name] = !view.splits[name]));
      const value = (number, name) => {
        const cell = el("td", {});
        cells.values.set(`${number} ${name}`, cell);
        return cell;
      };
      const rows = data.runs.map((run, number) =>
        el("tr", {}, several()
          ? el("th", { scope: "row" }, toggle({ class: "toggle", colour: number }, run.name, () => !view.off.has(number), () => view.off.delete(number) || view.off.add(number)))
          : el("th", { scope: "row" }, cells.where), value(number, "train"), value(number, "held_back")));
      const colours = several() ? [null, null] : [0, 1];
      const made = el("table", { class: "read" },
        el("caption", { class: "hidden" }, "Values at the cursor"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, several() ? cells.where : ""),
          el("th", { scope: "col" }, split("train", "solid", "training", colours[0])), el("th", { scope: "col" }, split("held_back", "dashed", "held back", colours[1])))),
        el("tbody", {}, rows));
      if (several()) made.querySelectorAll(".toggle.solid, .toggle.dashed").forEach((b) => b.style.removeProperty("--c"));
      read.replaceChildren(made);
    }
    cells.where.textContent = where;
    cells.values.forEach((cell, key) => (cell.textContent = values.has(key) ? short(values.get(key)) : "–"));
    cells.toggles.forEach(([button, is]) => button.setAttribute("aria-pressed", Boolean(is())));
  }
  const place = (event) => event.clientX - chart.getBoundingClientRect().left;
  const inside = (px) => Math.max(plot.edges[0], Math.min(plot.edges[1], px));
  chart.addEventListener("pointerdown", (event) => {
    if (!plot || event.target.closest("button")) return;
    if (event.pointerType === "mouse" && event.button === 0) band = [inside(place(event)), inside(place(event))];
    chart.setPointerCapture(event.pointerId);
    move(event);
  });
  function move(event) {
    if (!plot) return;
    const px = inside(place(event));
    if (band) band[1] = px;
    view.cursor = plot.toValue(px);
    point();
  }
  chart.addEventListener("pointermove", move);
  chart.addEventListener("pointerup", () => {
    const zoom = band && Math.abs(band[1] - band[0]) > 12 ? band.map(plot.toValue).sort((a, b) => a - b) : null;
    band = null;
    if (zoom) view.range = zoom;
    if (zoom) draw();
    else if (plot) point();
  });
  chart.addEventListener("pointercancel", () => ((band = null), point()));
  chart.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "mouse" || band) return;
    view.cursor = null;
    point();
  });
  chart.addEventListener("dblclick", () => ((view.range = null), draw()));
  chart.addEventListener("keydown", (event) => {
    if (!plot || event.target !== chart) return;
    const [low, high] = plot.bounds, now = view.cursor ?? high, stride = (high - low) / (event.shiftKey ? 10 : 100);
    const to = { ArrowLeft: now - stride, ArrowDown: now - stride, ArrowRight: now + stride, ArrowUp: now + stride, PageDown: now - 10 * stride, PageUp: now + 10 * stride, Home: low, End: high }[event.key];
    if (event.key === "Escape") view.cursor = null;
    else if (to == null) return;
    else view.cursor = Math.max(low, Math.min(high, to));
    event.preventDefault();
    point();
  });
  let known = 0;
  new ResizeObserver(() => {
    if (chart.clientWidth !== known) {
      known = chart.clientWidth;
      draw();
    }
  }).observe(chart);
  addEventListener("beforeprint", draw);
  return part(section, draw);
}

/* ---- What evaluate found ---- */

function evaluation() {
  const inner = el("div", {});
  const section = card("By noise level", "loss on pictures held back, from nearly clean (time 0) to noise (time 1)", inner);
  const rebuild = () => {
    const all = data.runs.map((run, number) => ({ run, number, found: run.evaluation })).filter(({ found }) => found);
    const alike = all.length && all.every(({ found }) => found.levels.length === all[0].found.levels.length);
    const evaluated = all.filter(({ found }) => found.levels.length && (alike || found === all[0].found));
    if (!all.length) return [];
    const made = [];
    if (several()) made.push(el("div", { class: "legend" }, all.map(({ run, number }) => el("span", {}, el("i", { class: "swatch", colour: number }), run.name))));
    if (evaluated.length) {
      const levels = evaluated[0].found.levels, names = levels.map((level) => level.time[0].toFixed(1));
      const colours = evaluated.map(({ number }) => number);
      const figure = (key, name) => {
        const values = levels.map((_, i) => evaluated.map(({ found }) => found.levels[i][key]));
        const box = el("figure", { role: "img", "aria-label": `${name} by diffusion time: ${levels.map((l, i) => `${l.time[0].toFixed(1)} to ${l.time[1].toFixed(1)}: ${values[i].map((v) => short(v)).join(" and ")}`).join("; ")}` });
        const tell = (i, k, v) => `${several() ? `${evaluated[k].run.name}, ` : ""}time ${levels[i].time.map((t) => t.toFixed(2)).join(" to ")}: ${short(v)}`;
        const draw = () => box.replaceChildren(barChart(names, values, colours, { width: Math.max(240, box.clientWidth || 320), height: 230, yLabel: name, xLabel: "diffusion time, from", tell }));
        new ResizeObserver(draw).observe(box);
        return box;
      };
      made.push(el("div", { class: "bars" }, figure("noise_loss", "noise loss"), figure("image_loss", "image loss")));
      made.push(el("details", {}, el("summary", {}, "The numbers"), el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ["time", "noise rate", "pictures", ...evaluated.flatMap(({ run }) => ["noise loss", "image loss"].map((t) => (several() ? `${run.name}: ${t}` : t)))].map((t) => el("th", { scope: "col" }, t)))),
        el("tbody", {}, levels.map((level, i) => el("tr", {}, [`${short(level.time[0], 2)} to ${short(level.time[1], 2)}`, level.noise_rate.map((r) => short(r, 3)).join(" to "), grouped(level.count), ...evaluated.flatMap(({ found }) => [short(found.levels[i].noise_loss), short(found.levels[i].image_loss)])].map((t) => el("td", {}, t)))))))));
    }
    made.push(el("div", { class: "quality" }, all.map(({ run, found }) => {
      const q = found.quality, lines = [`${grouped(found.pictures)} pictures (${found.split}), weights ${found.weights}, step ${grouped(found.step)}: noise loss ${short(found.noise_loss)}, image loss ${short(found.image_loss)}.`];
      if (q) {
        const rates = [["FID", q.fid], ["precision", q.precision], ["recall", q.recall]].filter(([, v]) => v != null).map(([name, v]) => `${name} ${short(v)}`);
        lines.push(`KID ${short(q.kid)} ± ${short(q.kid_std)}${rates.length ? `, ${rates.join(", ")}` : ""} (protocol ${q.protocol}; ${grouped(q.pictures[0])} real and ${grouped(q.pictures[1])} drawn pictures; ${q.sampler}, ${q.steps} steps, ${q.network_calls} network calls).`);
      } else lines.push("KID and FID were not measured.");
      const later = run.status !== "starting" && run.steps > found.step ? ` The run has gone on since, to step ${grouped(run.steps)}.` : "";
      return el("p", { class: "soft" }, several() ? el("strong", {}, `${run.name}: `) : null, lines.join(" ") + later);
    })));
    return made;
  };
  const update = kept(inner, () => data.runs.map((run) => [run.name, run.evaluation, run.steps]), rebuild);
  return part(section, () => {
    section.hidden = !data.runs.some((run) => run.evaluation);
    update();
  });
}

/* ---- Several runs beside each other ---- */

function comparison() {
  const body = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of runs" });
  const note = el("p", { class: "soft" });
  const section = card("The runs compared", "settings that differ, and what came of them", body, note);
  const order = { by: null, up: true };
  const differs = (...keys) => data.differing.some(([key]) => keys.includes(key));
  /** Whether the least of a column is the best: not where pictures, their scale or the noise are others. */
  const comparable = (name) => !differs("data", "image_size", "channels") && (["KID", "FID"].includes(name) || !differs("schedule", "min_signal_rate", "max_signal_rate", "zero_snr", "beta_start", "beta_end", "normalize", "valid_fraction"));
  function columns() {
    const q = (run) => (run.evaluation && run.evaluation.quality) || {};
    const results = [
      ["noise loss", (r) => (r.valid ? r.valid[1][1] : null), short, true], ["image loss", (r) => (r.valid ? r.valid[1][2] : null), short, true],
      ["KID", (r) => q(r).kid, short, true], ["FID", (r) => q(r).fid, short, true], ["steps", (r) => r.steps, grouped], ["images/s", (r) => r.images_per_second, (v) => short(v, 3)],
      ["time", (r) => r.seconds, duration], ["device", (r) => r.device, (v) => v || "–"], ["status", (r) => r.status, (v) => v],
    ];
    // Of a path the last part tells runs apart; all of it is among the settings below.
    const settings = data.differing.map(([key, values]) => [key, (r) => values[data.runs.indexOf(r)], (v) => (v.includes("/") ? v.split("/").filter(Boolean).at(-1) : v) || "–"]);
    const there = results.filter(([, of]) => data.runs.some((run) => of(run) != null));
    return [...there.filter((column) => column[3]), ...settings, ...there.filter((column) => !column[3])];
  }
  function rebuild() {
    const cols = columns();
    const compare = (a, b) => {
      const [x, y] = [a, b].map((run) => (order.by === "run" ? run.name : (cols.find(([name]) => name === order.by) || [])[1]?.(run)));
      if (x == null || y == null) return (x == null) - (y == null);
      const numbers = [Number(x), Number(y)];
      const sign = numbers.some(Number.isNaN) || x === "" || y === "" ? String(x).localeCompare(String(y), undefined, { numeric: true }) : numbers[0] - numbers[1];
      return order.up ? sign : -sign;
    };
    const runs = order.by ? [...data.runs].sort(compare) : data.runs;
    const headOf = (name, shown) => {
      const on = order.by === name;
      const flip = () => {
        [order.up, order.by] = [on ? !order.up : true, name];
        body.replaceChildren(rebuild());
        body.querySelectorAll("thead button").forEach((b) => b.dataset.name === name && b.focus());
      };
      return el("th", { scope: "col", "aria-sort": on ? (order.up ? "ascending" : "descending") : "none" }, el("button", { type: "button", "data-name": name, "data-on": String(on), onclick: flip }, `${shown}${on ? (order.up ? " ↑" : " ↓") : ""}`));
    };
    const best = new Map(cols.filter(([name, , , least]) => least && comparable(name)).map(([name, of]) => [name, Math.min(...runs.map(of).filter((v) => v != null))]));
    return el("table", {}, el("caption", { class: "hidden" }, "The runs, with the settings that differ and their results"),
      el("thead", {}, el("tr", {}, headOf("run", "run"), cols.map(([name]) => headOf(name, name)))),
      el("tbody", {}, runs.map((run) => el("tr", {}, el("th", { scope: "row" }, el("i", { class: "swatch", colour: data.runs.indexOf(run) }), run.name),
        cols.map(([name, of, text]) => el("td", { class: best.get(name) != null && of(run) === best.get(name) ? "best" : null }, text(of(run))))))));
  }
  const update = kept(body, () => data.runs.map((r) => [r.name, r.status, r.steps, r.valid, r.evaluation, r.seconds]), rebuild);
  return part(section, () => {
    section.hidden = !several();
    if (!several()) return;
    update();
    note.textContent = `Losses are of the last validation${comparable("noise loss") ? "; the least of a column is green" : ", and not comparable: pictures, their scale or the noise differ"}.${data.differing.length ? "" : " All settings are the same."}`;
  });
}

/* ---- How to do it again ---- */

function again() {
  const body = el("div", {});
  const section = card("Do it again", "same settings, same numbers, on any number of threads; other instruction sets and devices round differently", body);
  const download = (run) => {
    const address = URL.createObjectURL(new Blob([run.config], { type: "text/plain" }));
    el("a", { href: address, download: "config.toml" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  // Lines break before an option, not within it.
  const words = (text) => text.split(/ (?=--)/).flatMap((word, i) => (i ? [" ", el("span", {}, word)] : [el("span", {}, word)]));
  const line = ([about, text]) => el("div", { class: "command" }, el("span", { class: "soft" }, about), el("div", { class: "line" }, el("pre", {}, words(text)), copyButton(() => text)));
  const settings = (run) => run.config && el("details", {}, el("summary", {}, "All settings"),
    el("div", { class: "actions" }, copyButton(() => run.config), el("button", { type: "button", onclick: () => download(run) }, "Save as config.toml")),
    el("pre", { tabindex: 0, "aria-label": "config.toml" }, run.config));
  const inner = (run) => [...run.commands.map(line), settings(run)];
  const update = kept(body, () => data.runs.map((run) => [run.name, run.commands, run.config]), () =>
    data.runs.map((run) => (several() ? el("details", {}, el("summary", {}, run.name), inner(run)) : el("div", {}, inner(run)))));
  return part(section, () => {
    section.hidden = !data.runs.some((run) => run.commands.length);
    update();
  });
}

/* ---- All of it, and its news ---- */

let lost = false;
const made = new Date(data.made * 1000).toLocaleString(undefined, { dateStyle: "long", timeStyle: "short" });
page.append(head(), tiles(), comparison(), several() ? samples() : el("div", { class: "pair" }, samples(), facts()), curves(), evaluation(), again(),
  el("footer", {}, data.live ? `${data.generator}. This page follows the files of the run and changes nothing.` : `Made by ${data.generator}, ${made}. All of this page is in this one file; it loads nothing.`));
const refresh = () => parts.forEach((update) => update());
refresh();

if (data.live) {
  let tag = null;
  const ended = () => data.runs.every((run) => run.status === "finished");
  const ask = async () => {
    let wait = document.hidden ? 10000 : 2000;
    try {
      const answer = await fetch("data.json", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        data = await answer.json();
        document.title = data.title;
      }
      lost = false;
      if (answer.status === 200) refresh();
    } catch {
      // The server ends with the training: what came last stays.
      lost = !ended();
      wait = 5000;
    }
    const sign = document.getElementById("lost");
    if (sign) sign.hidden = !lost;
    setTimeout(ask, wait);
  };
  ask();
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
}

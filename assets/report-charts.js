"use strict";
/* Elements, numbers in words, and the two kinds of charts. Text enters the page as text nodes only. */

/** An element of HTML: attributes by name, `on...` for handlers, `class`; children are elements or texts. */
function el(tag, attributes, ...children) {
  return dress(document.createElement(tag), attributes, children);
}
/** An element of SVG. */
function svg(tag, attributes, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "colour") node.style.setProperty("--c", colour(value));
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}
/** The colour of the run with this number: the first eight are chosen by hand. */
function colour(number) {
  return number < 8 ? `var(--c${number})` : `hsl(${Math.round(number * 137.5) % 360} 55% 52%)`;
}

/** A number for people: as many digits as matter. */
function short(value, digits = 4) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  if (size >= 100) return grouped(Math.round(value));
  return value.toFixed(Math.max(0, size >= 10 ? digits - 2 : digits));
}
function grouped(value) {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}
function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  if (hours < 1) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${(hours / 24).toFixed(1)} days`;
}

/** Round values between two bounds, about `count` of them. */
function ticks(least, most, count) {
  const rough = (most - least) / Math.max(1, count);
  if (!(rough > 0)) return [least];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(least / step - 1e-9); k * step <= most + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
/** Values for a logarithmic axis: powers of ten with their twos and fives, or even ones where it spans too little for these. */
function logTicks(least, most, count) {
  const decades = Math.log10(most / least);
  const found = [];
  for (let e = Math.floor(Math.log10(least)); e <= Math.ceil(Math.log10(most)); e++) {
    for (const m of decades > count ? [1] : decades > 1.5 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7]) found.push(Number((m * 10 ** e).toPrecision(6)));
  }
  const within = found.filter((v) => v >= least * 0.9999 && v <= most * 1.0001);
  return within.length >= 3 ? within : ticks(least, most, count);
}
/** How an axis writes its ticks: alike, with no more digits than tell them apart. */
function tickText(values) {
  const most = Math.max(...values.map(Math.abs));
  if (most >= 1e5 || (most > 0 && most < 1e-3)) {
    return (v) => (v === 0 ? "0" : most >= 1e5 && most < 1e9 ? (most >= 1e6 ? `${Number((v / 1e6).toFixed(2))}M` : `${Number((v / 1e3).toFixed(1))}k`) : Number(v.toPrecision(3)).toExponential().replace("e+", "e").replace("e-", "e−"));
  }
  return (v) => String(Number(v.toPrecision(6)));
}

/** Index of the last of rising `steps` that is at most `step`; -1 where there is none. */
function before(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
/** The index of the step that is nearest. */
function nearest(steps, step) {
  const at = before(steps, step);
  if (at < 0) return 0;
  return at + 1 < steps.length && steps[at + 1] - step < step - steps[at] ? at + 1 : at;
}
/** The value of a series at a step, along a line between its points. */
function along(series, step) {
  const { step: steps, value } = series, at = before(steps, step);
  if (!steps.length) return null;
  if (at < 0) return value[0] == null ? null : (value[0] * step) / steps[0];
  if (at + 1 >= steps.length) return value[at];
  const share = (step - steps[at]) / (steps[at + 1] - steps[at]);
  return value[at] + share * (value[at + 1] - value[at]);
}
/** An exponential moving average from both ends, so that it neither leans on its first values nor lags behind. */
function smoothed(values, weight) {
  const oneWay = (list) => {
    let sum = 0, mass = 0;
    return list.map((v) => {
      if (v == null) return null;
      sum = weight * sum + (1 - weight) * v;
      mass = weight * mass + (1 - weight);
      return [sum, mass];
    });
  };
  const there = oneWay(values), back = oneWay([...values].reverse()).reverse();
  // Both ways count the value itself.
  return values.map((v, i) => (v == null ? null : (there[i][0] + back[i][0] - (1 - weight) * v) / (there[i][1] + back[i][1] - (1 - weight))));
}

/**
 * Curves over a common axis. `lines`: {colour, held, points: [[x, y or null]], raw: the same before smoothing, or nothing}.
 * Returns the drawing and how to turn a place in it into a value of x and back.
 */
function lineChart(lines, { width, height, log, range, xLabel, yLabel, label }) {
  const all = lines.flatMap((line) => [...line.points, ...(line.raw || [])]);
  const usable = ([x, y]) => x != null && y != null && (!log || y > 0);
  const xs = all.filter(usable).map(([x]) => x);
  let [x0, x1] = range || [Math.min(...xs), Math.max(...xs)];
  if (!(x1 > x0)) [x0, x1] = [x0 - 0.5, x0 + 0.5];
  // The scale follows the smoothed curves; a single spike before smoothing must not flatten all others.
  const inView = ([x]) => x >= x0 && x <= x1;
  let ys = lines.flatMap((line) => line.points).filter((p) => usable(p) && inView(p)).map(([, y]) => y);
  if (!ys.length) ys = all.filter((p) => usable(p)).map(([, y]) => y);
  if (!ys.length) ys = [log ? 0.1 : 0, 1];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (log) {
    const pad = Math.max((y1 / y0) ** 0.06, 1.02);
    [y0, y1] = [y0 / pad, y1 * pad];
  } else {
    const pad = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
    [y0, y1] = [y0 >= 0 ? Math.max(0, y0 - pad) : y0 - pad, y1 + pad];
  }
  const yTicks = log ? logTicks(y0, y1, 6) : ticks(y0, y1, Math.max(3, Math.round(height / 60)));
  const yText = tickText(yTicks);
  const left = 14 + 7 * Math.max(...yTicks.map((t) => yText(t).length)), right = 12, top = 26, bottom = 44;
  const toX = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const shareY = log ? (y) => Math.log(y / y0) / Math.log(y1 / y0) : (y) => (y - y0) / (y1 - y0);
  const toY = (y) => height - bottom - shareY(y) * (height - top - bottom);
  const xTicks = ticks(x0, x1, Math.max(2, Math.round((width - left) / 110)));
  const xText = tickText(xTicks);
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  const path = (points) => {
    let d = "", on = false;
    for (const point of points) {
      if (!usable(point)) {
        on = false;
        continue;
      }
      d += `${on ? "L" : "M"}${toX(point[0]).toFixed(1)} ${Math.max(-999, Math.min(9999, toY(point[1]))).toFixed(1)}`;
      on = true;
    }
    return d;
  };
  const curves = svg("g", { "clip-path": `url(#${clip})` });
  for (const line of lines) {
    if (line.raw) curves.append(svg("path", { class: "curve raw", colour: line.colour, d: path(line.raw) }));
    curves.append(svg("path", { class: line.held ? "curve held" : "curve", colour: line.colour, d: path(line.points) }));
    const few = line.points.filter((p) => usable(p) && inView(p));
    if (few.length <= 40 && (line.held || few.length < 3)) {
      for (const [x, y] of few) curves.append(svg("circle", { class: "dot", colour: line.colour, cx: toX(x), cy: toY(y), r: 3.5 }));
    }
  }
  const overlay = svg("g", {});
  const drawing = svg(
    "svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" },
    svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 6, width: Math.max(1, width - left - right), height: height - top - bottom + 12 })),
    yTicks.map((t) => svg("line", { class: "axis", x1: left, x2: width - right, y1: toY(t), y2: toY(t) })),
    yTicks.map((t) => svg("text", { x: left - 8, y: toY(t) + 4, "text-anchor": "end" }, yText(t))),
    xTicks.map((t) => svg("text", { x: toX(t), y: height - bottom + 18, "text-anchor": toX(t) > width - 20 ? "end" : "middle" }, xText(t))),
    svg("text", { x: left + (width - left - right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    svg("text", { x: 0, y: 12 }, yLabel),
    curves, overlay,
  );
  return { drawing, overlay, toX, toY, top, usable, toValue: (px) => x0 + ((px - left) / (width - left - right)) * (x1 - x0), bounds: [x0, x1], edges: [left, width - right], base: height - bottom, label };
}

/** Grouped bars. `names`: under each group; `groups[i][k]`: value of bar k, `colours[k]`. */
function barChart(names, groups, colours, { width, height, yLabel, xLabel, tell }) {
  const most = Math.max(...groups.flat().filter((v) => v != null), 1e-12);
  const yTicks = ticks(0, most, 4), yText = tickText(yTicks);
  const left = 14 + 7 * Math.max(...yTicks.map((t) => yText(t).length)), right = 4, top = 26, bottom = 44;
  const toY = (y) => height - bottom - (y / (most * 1.04)) * (height - top - bottom);
  const each = (width - left - right) / groups.length;
  const wide = Math.min(34, (each * 0.78) / colours.length);
  const every = Math.ceil((8 * Math.max(...names.map((n) => n.length))) / each);
  const bars = groups.flatMap((values, i) =>
    values.map((value, k) => {
      if (value == null) return null;
      const x = left + each * (i + 0.5) + (k - colours.length / 2) * wide;
      return svg("rect", { colour: colours[k], x: x + 0.5, width: Math.max(1, wide - 1), y: toY(value), height: Math.max(0, height - bottom - toY(value)), rx: Math.min(3, wide / 4) }, svg("title", {}, tell(i, k, value)));
    }),
  );
  return svg(
    "svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" },
    yTicks.map((t) => svg("line", { class: "axis", x1: left, x2: width - right, y1: toY(t), y2: toY(t) })),
    yTicks.map((t) => svg("text", { x: left - 8, y: toY(t) + 4, "text-anchor": "end" }, yText(t))),
    names.map((name, i) => (i % every ? null : svg("text", { x: left + each * (i + 0.5), y: height - bottom + 17, "text-anchor": "middle" }, name))),
    svg("text", { x: left + (width - left - right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    svg("text", { x: 0, y: 12 }, yLabel),
    bars,
  );
}

// Draws an answer: bars, the weights over time, the words. Names and words come from data: text, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 60; // of a row of weights, in units of its drawing
const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const percent = share => `${(100 * share).toFixed(1)} %`;
const figure = value => Number(value.toPrecision(4)).toString();
const times = share => `×${share.toFixed(share < 10 ? 1 : 0)}`;
export const seconds = time => `${time.toFixed(1)} s`;

// --- The answer ---------------------------------------------------------------------------------

export function drawOutcome(place, answer, facts) {
  const bars = element("div", { className: "bars" });
  const rows = [...answer.rows];
  if (answer.task !== "regression") rows.sort((one, other) => other.share - one.share);
  for (const row of rows) bars.append(...(answer.task === "regression" ? valueBar(row) : shareBar(row, answer, facts)));
  place.replaceChildren(bars);
}

function shareBar(row, answer, facts) {
  const mark = row.chosen ? " chosen" : "";
  const track = element("div", { className: `track${mark}` }, span(0, row.share));
  if (answer.task === "multilabel") track.append(at("mark", facts.threshold));
  return [
    element("div", { className: `label${mark}`, textContent: row.name }),
    track,
    element("div", { className: `figure${mark}`, textContent: percent(row.share) }),
  ];
}

function valueBar(row) {
  const low = Math.min(row.range[0], row.value), high = Math.max(row.range[1], row.value);
  const share = value => (value - low) / (high - low || 1);
  const track = element("div", { className: "track" });
  track.title = `from ${figure(low)} to ${figure(high)}`;
  if (row.interval) track.append(span(share(row.interval[0]), share(row.interval[1])));
  track.append(at("dot", share(row.value)));
  const told = row.interval ? ` (${figure(row.interval[0])} to ${figure(row.interval[1])})` : "";
  return [
    element("div", { className: "label chosen", textContent: row.name }),
    track,
    element("div", { className: "figure", textContent: `${figure(row.value)}${told}` }),
  ];
}

function span(from, to) {
  const made = element("i");
  made.style.left = `${100 * from}%`;
  made.style.width = `${100 * (to - from)}%`;
  return made;
}

function at(className, share) {
  const made = element("i", { className });
  made.style.left = `${100 * share}%`;
  return made;
}

// --- Over time ----------------------------------------------------------------------------------

// The modalities with weights over time: per step the multiple of the even share, and its length in seconds.
export function series(answer) {
  const found = [];
  for (const modality of ["video", "audio"]) {
    const weights = answer.weights[modality], step = answer.step_seconds[modality];
    if (weights?.length && step) found.push({ modality, step, shares: weights.map(w => w * weights.length) });
  }
  return found;
}

export function drawTimeline(place, answer, facts) {
  const rows = [];
  const weighted = Object.fromEntries(series(answer).map(each => [each.modality, each]));
  if (answer.frames) rows.push(framesRow(answer));
  if (weighted.video) rows.push(weightsRow(weighted.video, answer, facts));
  if (answer.wave) rows.push(waveRow(answer, facts));
  if (weighted.audio) rows.push(weightsRow(weighted.audio, answer, facts));
  place.replaceChildren(...rows, axis(answer.duration, place.clientWidth), element("div", { className: "head" }));
}

function row(name, color) {
  const made = element("div", { className: `row ${name}` });
  if (color) made.style.setProperty("--own", color);
  return made;
}

function stretched(width, height) {
  const made = drawing("svg", { viewBox: `0 0 ${width} ${height}`, height, preserveAspectRatio: "none" });
  made.setAttribute("aria-hidden", "true");
  return made;
}

function framesRow(answer) {
  const made = row("frames");
  const slot = answer.frames.length > 1 ? answer.frames[1].begin - answer.frames[0].begin : answer.duration / 7;
  for (const frame of answer.frames) {
    const image = element("img", { src: frame.src, alt: `frame at ${seconds(frame.begin + slot / 2)}`, draggable: false });
    image.style.left = `${(100 * frame.begin) / answer.duration}%`;
    image.style.width = `calc(${(100 * slot) / answer.duration}% - 3px)`;
    image.style.opacity = 0.25 + 0.75 * frame.clear;
    made.append(image);
  }
  return made;
}

function waveRow(answer, facts) {
  const { low, high, clear, end } = answer.wave;
  const made = row("sound", facts.colors.audio), svg = stretched(answer.duration, 2.2);
  svg.setAttribute("height", 70);
  low.forEach((_, i) => {
    const x = ((i + 0.5) / low.length) * end;
    const ends = { x1: x, x2: x, y1: 1.1 - high[i], y2: 1.1 - low[i] };
    svg.append(drawing("line", { ...ends, class: "back" }));
    svg.append(drawing("line", { ...ends, class: "wave", "stroke-opacity": clear[i] }));
  });
  made.append(svg);
  return made;
}

function weightsRow({ modality, step, shares }, answer, facts) {
  const made = row(`weights ${modality}`, facts.colors[modality]), svg = stretched(answer.duration, HEIGHT);
  const most = Math.max(2, 1.15 * Math.max(...shares));
  const y = share => HEIGHT * (1 - share / most);
  const end = Math.min(step * shares.length, answer.duration);
  let path = `M0 ${HEIGHT}`;
  shares.forEach((share, i) => {
    path += `L${Math.min(i * step, end)} ${y(share)}L${Math.min((i + 1) * step, end)} ${y(share)}`;
  });
  svg.append(drawing("path", { d: `${path}L${end} ${HEIGHT}Z`, class: "area" }));
  svg.append(drawing("line", { x1: 0, x2: answer.duration, y1: y(1), y2: y(1), class: "uniform" }));
  const told = `${modality} weight, at most ${times(Math.max(...shares))}`;
  made.append(svg, element("span", { className: "of", textContent: told }));
  return made;
}

function axis(duration, width) {
  const made = element("div", { className: "axis" });
  const step = TICKS.find(tick => duration / tick <= width / 66) ?? duration / 10;
  const marks = [];
  for (let i = 0; i * step < duration - step / 2; i++) marks.push(i * step);
  for (const time of [...marks, duration]) {
    const mark = element("span", { textContent: seconds(time) });
    mark.style.left = `${(100 * time) / duration}%`;
    made.append(mark);
  }
  return made;
}

// What the weights are at a time: "2.3 s: video ×0.8, audio ×1.4".
export function told(answer, time) {
  const parts = series(answer).map(({ modality, step, shares }) => {
    const place = Math.floor(time / step + 1e-6);
    return place < shares.length ? `${modality} ${times(shares[place])}` : `no ${modality}`;
  });
  return parts.length ? `${seconds(time)}: ${parts.join(", ")}` : seconds(time);
}

// --- Words --------------------------------------------------------------------------------------

export function drawWords(place, answer, facts) {
  const weights = answer.weights.text ?? [];
  const shares = weights.map(weight => weight * weights.length), most = Math.max(...shares);
  place.style.setProperty("--own", facts.colors.text ?? "");
  place.replaceChildren(
    ...answer.words.map((word, i) => {
      const made = element("li", { className: shares[i] === most ? "heaviest" : "" });
      if (shares.length) {
        const column = element("span", { className: "column" });
        column.style.height = `${Math.max(2, (44 * shares[i]) / Math.max(2, most))}px`;
        made.append(column);
      }
      made.append(element("span", { className: "word", textContent: word }));
      if (shares.length) made.append(element("span", { className: "figure", textContent: times(shares[i]) }));
      return made;
    }),
  );
}

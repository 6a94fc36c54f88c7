// The curve of the loss: every step that was told, a smoothed line, and evaluations of held-out text.

import { byId, nice, say, steer, svg, whole, widthOf } from './draw.js';

const POINTS_MAX = 4096;
const HEIGHT = 236;
const MARGIN = { left: 46, right: 8, top: 8, bottom: 22 };
const curves = { losses: [], heldout: [] };
let picture = null;
let chosen = null;

/** Takes in what has grown, or another curve. */
export function grow(name, { anew, points }) {
  const curve = anew ? points : curves[name].concat(points);
  // Every second of the older half, so that it has an end.
  const half = Math.floor(curve.length / 2);
  curves[name] = curve.length > POINTS_MAX ? curve.filter((_, n) => n > half || n % 2 === 0) : curve;
}

export function drawLoss() {
  const known = curves.losses.filter(([, loss]) => loss !== null);
  if (known.length < 2) return;
  const parent = byId('loss-picture');
  const width = widthOf(parent);
  const smooth = smoothed(known);
  const evaluated = curves.heldout.filter(([, loss]) => loss !== null);
  const { x, y, ticks, steps } = scales(known, smooth, evaluated, width);
  // The same element at each drawing: whoever reads it by keys stays in it.
  const root = picture?.root ?? svg('svg', { height: HEIGHT, role: 'img', tabindex: 0 });
  root.replaceChildren();
  root.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
  const [first, last] = [known[0], known.at(-1)];
  root.setAttribute('aria-label', `Loss: ${first[1].toFixed(3)} at step ${first[0]}, ${last[1].toFixed(3)} at step ${last[0]}. Arrow keys read it.`);
  for (const tick of ticks) {
    root.append(svg('line', { class: 'axis', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    root.append(svg('text', { x: MARGIN.left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, label(tick)));
  }
  for (const [n, step] of steps.entries()) {
    const anchor = n === 0 ? 'start' : n === steps.length - 1 ? 'end' : 'middle';
    root.append(svg('text', { x: x(step), y: HEIGHT - 5, 'text-anchor': anchor }, n === 0 ? `step ${whole(step)}` : whole(step)));
  }
  const path = (points) => `M${points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join('L')}`;
  root.append(svg('path', { class: 'train', d: path(known) }), svg('path', { class: 'smooth', d: path(smooth) }));
  for (const [step, loss] of evaluated) root.append(svg('circle', { class: 'heldout', cx: x(step), cy: y(loss), r: 3 }));
  if (picture === null) {
    steer(root, move, point, leave);
    parent.replaceChildren(root);
  }
  picture = { root, x, y, known, smooth, evaluated, width };
  byId('loss-legend').hidden = false;
  byId('heldout-key').hidden = evaluated.length === 0;
  if (chosen === null) tell();
  else mark();
}

/** An exponential mean whose length grows with what is known. */
function smoothed(known) {
  const weight = Math.max(0.02, 1 / (1 + known.length / 40));
  let mean = known[0][1];
  return known.map(([step, loss]) => {
    mean += weight * (loss - mean);
    return [step, mean];
  });
}

function scales(known, smooth, evaluated, width) {
  const all = known.concat(evaluated).map(([, loss]) => loss);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
  const ticks = nice(low, high, 5);
  low = Math.min(low, ticks[0]);
  high = Math.max(high, ticks.at(-1));
  const [first, last] = [known[0][0], known.at(-1)[0]];
  const [w, h] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
  const x = (step) => MARGIN.left + ((step - first) / Math.max(1, last - first)) * w;
  const y = (loss) => MARGIN.top + ((high - loss) / (high - low)) * h;
  const inner = nice(first, last, Math.max(2, Math.floor(w / 130)))
    .filter((step) => Number.isInteger(step) && x(step) - x(first) > 90 && x(last) - x(step) > 60);
  return { x, y, ticks, steps: [first, ...inner, last] };
}

const label = (tick) => (Math.abs(tick) >= 10 ? tick.toFixed(0) : tick.toFixed(Math.abs(tick) < 1 ? 2 : 1));

function move(right, _down) {
  const n = picture.known.length;
  chosen = Math.min(n - 1, Math.max(0, (chosen ?? n - 1) + right));
  mark();
}

function point(left) {
  const { known, x } = picture;
  let nearest = 0;
  for (let n = 1; n < known.length; n++) {
    if (Math.abs(x(known[n][0]) - left) < Math.abs(x(known[nearest][0]) - left)) nearest = n;
  }
  chosen = nearest;
  mark();
}

function leave() {
  chosen = null;
  picture.root.querySelectorAll('.cursor, .at').forEach((old) => old.remove());
  tell();
}

function mark() {
  const { root, known, smooth, x, y } = picture;
  root.querySelectorAll('.cursor, .at').forEach((old) => old.remove());
  chosen = Math.min(chosen, known.length - 1);
  const [step, loss] = known[chosen];
  root.append(svg('line', { class: 'cursor', x1: x(step), x2: x(step), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
  root.append(svg('circle', { class: 'at', cx: x(step), cy: y(loss), r: 3.5 }));
  say('loss-says', `step ${whole(step)}: ${loss.toFixed(4)}, smoothed ${smooth[chosen][1].toFixed(4)}`);
}

/** Not the curve's end, which changes every second and would be read aloud each time. */
function tell() {
  const heldout = picture.evaluated.at(-1);
  say('loss-says', heldout ? `held-out ${heldout[1].toFixed(4)} at step ${whole(heldout[0])}` : 'nats per token');
}

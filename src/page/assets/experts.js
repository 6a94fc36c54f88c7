// How evenly a step's tokens fell on the experts: a row for each layer, a square for each expert where the counts are known,
// and otherwise a bar for the busiest.

import { byId, canvas, colour, say, steer } from './draw.js';

// As `src/page/state.rs` tells them: sixteenths of the mean.
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
let drawn = null;
let chosen = null;

export function drawExperts({ experts }) {
  const section = document.querySelector('section.experts');
  const layers = experts ?? [];
  const known = layers.every((layer) => layer.loads);
  // Between two plans counts are not known for a moment: those before stand.
  if (layers.length === 0 || (!known && drawn?.known)) return;
  section.hidden = false;
  const columns = known ? Math.max(...layers.map((layer) => layer.loads.length)) : 0;
  const tall = Math.max(4, Math.min(26, Math.floor(300 / layers.length)));
  const worst = layers.reduce((a, b) => (a.most >= b.most ? a : b));
  const label = `Load of experts by layer; the busiest has ${worst.most} times the mean, in layer ${worst.layer}. Arrow keys read it.`;
  const on = canvas(byId('experts'), layers.length * tall + 20, label);
  const first = drawn === null;
  drawn = { ...on, layers, columns, tall, worst, left: 66, known };
  section.querySelector('.legend').hidden = !known;
  if (first) steer(on.element, move, point, leave);
  paint();
}

const load = (layer, expert) => LETTERS.indexOf(layer.loads[expert]) / 16;

/** Mixed by hand: a canvas wants plain colours. */
function mixer() {
  const parse = (name) => [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16));
  const [low, mean, high, most] = ['load-low', 'load-mean', 'load-high', 'load-most'].map(parse);
  const mix = (a, b, t) => `rgb(${a.map((from, n) => Math.round(from + (b[n] - from) * t)).join(',')})`;
  return (value) => {
    if (value < 1) return mix(mean, low, 1 - value);
    return value < 2 ? mix(mean, high, value - 1) : mix(high, most, Math.min(1, (value - 2) / 2));
  };
}

function paint() {
  const { context, width, height, layers, columns, tall, left, known, worst } = drawn;
  const [text, faint, accent, line] = ['text', 'faint', 'accent', 'line'].map(colour);
  const wide = (width - left) / Math.max(1, columns);
  const of = mixer();
  context.clearRect(0, 0, width, height);
  context.textBaseline = 'middle';
  context.strokeStyle = line;
  context.lineWidth = 1;
  // Names as far as they have room.
  const every = Math.ceil(15 / tall);
  for (const [row, layer] of layers.entries()) {
    const top = row * tall;
    context.fillStyle = faint;
    context.textAlign = 'left';
    if (row % every === 0) context.fillText(`layer ${layer.layer}`, 0, top + tall / 2);
    if (known) {
      for (let expert = 0; expert < layer.loads.length; expert++) {
        const [box, value] = [[left + expert * wide, top, Math.max(1, wide - (wide > 4 ? 1 : 0)), tall - (tall > 5 ? 1 : 0)], load(layer, expert)];
        context.fillStyle = of(value);
        if (value > 0) context.fillRect(...box);
        else if (wide > 4) context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
      }
    } else {
      context.fillStyle = accent;
      context.fillRect(left, top + 2, Math.min(1, layer.most / Math.max(2, worst.most)) * (width - left - 60), tall - 4);
      context.fillStyle = text;
      context.fillText(`${layer.most.toFixed(2)} ×`, width - 52, top + tall / 2);
    }
  }
  context.fillStyle = faint;
  if (known) {
    context.fillText('expert 0', left, layers.length * tall + 10);
    context.textAlign = 'right';
    context.fillText(String(columns - 1), width, layers.length * tall + 10);
  }
  drawn.wide = wide;
  if (chosen !== null && known) mark(text);
  else say('experts-says', `busiest ${worst.most.toFixed(2)} × the mean, layer ${worst.layer}`);
}

function mark(ink) {
  const { context, layers, tall, left, wide } = drawn;
  const row = Math.min(chosen.row, layers.length - 1);
  const expert = Math.min(chosen.expert, layers[row].loads.length - 1);
  chosen = { row, expert };
  context.strokeStyle = ink;
  context.lineWidth = 2;
  context.strokeRect(left + expert * wide + 0.5, row * tall + 0.5, Math.max(3, wide - 2), Math.max(3, tall - 2));
  const layer = layers[row];
  say('experts-says', `layer ${layer.layer}, expert ${expert}: ${load(layer, expert).toFixed(2)} × the mean`);
}

function move(right, down) {
  const at = chosen ?? { row: 0, expert: right > 0 ? -1 : 0 };
  const { layers, columns } = drawn;
  const within = (value, most) => Math.min(most, Math.max(0, value));
  chosen = { row: within(at.row + down, layers.length - 1), expert: within(at.expert + right, Math.max(0, columns - 1)) };
  paint();
}

function point(x, y) {
  const { layers, columns, tall, left, wide } = drawn;
  const [row, expert] = [Math.floor(y / tall), Math.floor((x - left) / wide)];
  chosen = row < layers.length && expert >= 0 && expert < columns ? { row, expert } : null;
  paint();
}

function leave() {
  chosen = null;
  paint();
}

// The newest step of every cell, beside each other: what it computed when, and when it waited.

import { byId, canvas, colour, duration, nice, say, steer, whole } from './draw.js';

const ROW = 22;
const BAR = 16;
const WORDS = { F: 'forward', B: 'backward', W: "the weights' half of backward", r: 'waits for another stage', S: 'sums gradients, or votes', U: 'updates' };
let drawn = null;
let chosen = null;

export function drawTimeline({ timeline, workers, grid }) {
  const section = document.querySelector('section.timeline');
  const rows = timeline?.rows ?? [];
  // Between two plans there is none for a moment: the one before stands.
  if (rows.length === 0) return;
  section.hidden = false;
  const end = Math.max(1, ...rows.map((row) => row.end));
  const busy = share(rows, end);
  const label = `The newest step took ${duration(end / 1e6)} on ${rows.length} cells, which computed ${busy} % of it. Arrow keys read it.`;
  const on = canvas(byId('timeline'), rows.length * ROW + 20, label);
  const names = rows.map((row) => nameOf(row.cell, workers, on.width < 560 ? null : grid));
  const left = Math.min(on.width * 0.36, 12 + Math.max(...names.map((name) => on.context.measureText(name).width)));
  const first = drawn === null;
  drawn = { ...on, rows, end, left, names, busy, step: timeline.step };
  if (first) steer(on.element, move, point, leave);
  paint();
}

/** Of the whole step, over all cells. */
function share(rows, end) {
  let busy = 0;
  for (const row of rows) for (const [doing, , , time] of row.spans) if ('FBWU'.includes(doing)) busy += time;
  return Math.round((busy / (end * rows.length)) * 100);
}

function nameOf(cell, workers, grid) {
  const worker = workers?.find((one) => one.cells.includes(cell));
  if (!grid) return `${cell} ${worker?.name ?? ''}`;
  return `stage ${Math.floor(cell / (grid[1] * grid[2]))}  cell ${cell}  ${worker?.name ?? ''}`;
}

function paint() {
  const { context, width, height, rows, end, left, names } = drawn;
  const colours = Object.fromEntries([...'FBWrSU'].map((doing) => [doing, colour(doing)]));
  const [text, faint, line, panel] = ['text', 'faint', 'line', 'panel'].map(colour);
  const x = (at) => left + (at / end) * (width - left - 2);
  drawn.x = x;
  context.clearRect(0, 0, width, height);
  context.textBaseline = 'middle';
  for (const [n, row] of rows.entries()) {
    const top = n * ROW;
    context.fillStyle = faint;
    context.textAlign = 'left';
    context.fillText(names[n], 0, top + BAR / 2 + 1, left - 8);
    for (const [doing, microbatch, from, time] of row.spans) {
      const [at, wide] = [x(from), x(from + time) - x(from)];
      context.fillStyle = colours[doing] ?? line;
      context.fillRect(at, top, Math.max(0.6, wide - 0.6), BAR);
      if ('FB'.includes(doing) && wide >= 16) {
        context.fillStyle = panel;
        context.textAlign = 'center';
        context.fillText(String(microbatch), at + wide / 2, top + BAR / 2 + 1);
      }
    }
  }
  context.fillStyle = faint;
  for (const tick of nice(0, end, width < 560 ? 3 : 7)) {
    const at = x(tick);
    context.textAlign = tick === 0 ? 'left' : width - at < 30 ? 'right' : 'center';
    context.fillText(tick === 0 ? '0' : duration(tick / 1e6), at, rows.length * ROW + 9);
  }
  if (chosen !== null) mark(text);
  else say('timeline-says', `step ${whole(drawn.step)}: ${duration(end / 1e6)}, of which cells compute ${drawn.busy} %`);
}

function mark(ink) {
  const { context, rows, x, names } = drawn;
  const row = Math.min(chosen.row, rows.length - 1);
  const spans = rows[row].spans;
  if (spans.length === 0) return;
  const span = Math.min(chosen.span, spans.length - 1);
  chosen = { row, span };
  const [doing, microbatch, from, time] = spans[span];
  context.strokeStyle = ink;
  context.lineWidth = 1.5;
  context.strokeRect(x(from) - 0.5, row * ROW - 0.5 + (row === 0 ? 1 : 0), Math.max(2, x(from + time) - x(from)), BAR);
  const of = 'FBWr'.includes(doing) ? `, microbatch ${microbatch}` : '';
  say('timeline-says', `${names[row]}: ${WORDS[doing] ?? doing}${of}, ${duration(time / 1e6)}`);
}

function move(right, down) {
  const { row, span } = chosen ?? { row: 0, span: right > 0 ? -1 : 0 };
  const { rows } = drawn;
  const nextRow = Math.min(rows.length - 1, Math.max(0, row + down));
  const most = Math.max(0, rows[nextRow].spans.length - 1);
  chosen = { row: nextRow, span: Math.min(most, Math.max(0, span + right)) };
  paint();
}

function point(left, top) {
  const { rows, x } = drawn;
  const row = Math.floor(top / ROW);
  const span = rows[row]?.spans.findIndex(([, , from, time]) => x(from) <= left && left <= x(from + time)) ?? -1;
  chosen = span < 0 ? null : { row, span };
  paint();
}

function leave() {
  chosen = null;
  paint();
}

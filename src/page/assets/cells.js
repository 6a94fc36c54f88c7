// The cluster as a picture: stages from left to right, in each its cells, one below the other, and what they send each other.

import { byId, rate as asRate, say, svg, widthOf } from './draw.js';

const GOOD = ['training', 'ready', 'finished'];
const BAD = ['lost', 'cut_off', 'left'];
const LABELLED_MAX = 24;
// A gap in which a bracket's load can be read.
const LABEL_GAP = 106;

/** What is known, by names of parts: `grid`, `workers`, `links`, `run`. */
export function drawCells({ grid, workers, links, run }) {
  if (!grid || !workers) return;
  const [stages, shards, replicas] = grid;
  const rows = shards * replicas;
  const parent = byId('cells');
  const width = widthOf(parent);
  const size = layout(width, stages, rows, shards);
  const root = svg('svg', { viewBox: `0 0 ${width} ${size.height}`, height: size.height, role: 'img' });
  const host = hosts(workers);
  const rate = run?.seconds_per_step ? 1 / run.seconds_per_step : null;
  const loads = rate === null ? [] : (links ?? []).map(([from, to, bytes]) => [from, to, bytes * rate]);
  // Where loads are not known, there are links all the same.
  drawLinks(root, loads.length > 0 ? loads : plain(stages, shards, rows), { size, rows, host });
  let missing = 0;
  for (let stage = 0; stage < stages; stage++) {
    root.append(svg('text', { x: size.x(stage), y: 12 }, stages > 6 ? `${stage}` : `stage ${stage}`));
    for (let row = 0; row < rows; row++) {
      missing += drawCell(root, { stage, row, shards, replicas, size }, host.get(stage * rows + row));
    }
  }
  const what = [`${stages} ${stages === 1 ? 'stage' : 'stages'}`, `${shards} expert ${shards === 1 ? 'shard' : 'shards'}`];
  if (replicas > 1) what.push(`${replicas} replicas`);
  root.setAttribute('aria-label', `${what.join(', ')}; ${missing === 0 ? 'every cell has a worker' : `${missing} cells have no worker`}. Who has which cell is in the table of workers.`);
  parent.replaceChildren(root);
  if (loads.length > 0) byId('cells-legend').hidden = false;
  say('cells-says', missing === 0 ? what.join(' × ') : `${missing} of ${stages * rows} cells have no worker`);
}

function layout(width, stages, rows, shards) {
  const gap = Math.max(28, Math.min(150, Math.floor((width / stages) * 0.42)));
  // What is at the right of the last stage: the bracket, and its load where there is room for it.
  const arc = rows === 1 ? 4 : gap >= LABEL_GAP ? LABEL_GAP : 30;
  const cell = Math.max(16, Math.min(260, Math.floor((width - arc - gap * (stages - 1)) / stages)));
  const between = rows > 12 ? 4 : 14;
  const tall = Math.max(10, Math.min(76, Math.floor(226 / rows) - between));
  const x = (stage) => stage * (cell + gap);
  // Replicas stand a little apart.
  const y = (row) => 22 + row * (tall + between) + Math.floor(row / shards) * 10;
  return { gap, cell, tall, x, y, height: Math.max(70, y(rows - 1) + tall + 4) };
}

function hosts(workers) {
  const host = new Map();
  for (const worker of workers) for (const cell of worker.cells) host.set(cell, worker);
  return host;
}

/** Who sends to whom in any grid: the same column of the next stage, and the shards of one replica. */
function plain(stages, shards, rows) {
  const found = [];
  for (let cell = 0; cell < stages * rows && found.length < 1024; cell++) {
    if (cell + rows < stages * rows) found.push([cell, cell + rows, null]);
    if ((cell % rows) % shards < shards - 1) found.push([cell, cell + 1, null]);
  }
  return found;
}

/** Returns 1 where nobody has it. */
function drawCell(root, { stage, row, shards, replicas, size }, worker) {
  const is = !worker || BAD.includes(worker.state) ? 'bad' : worker.slow || !GOOD.includes(worker.state) ? 'warn' : 'good';
  const [x, y] = [size.x(stage), size.y(row)];
  const box = svg('g');
  const name = worker ? worker.name : 'nobody';
  const part = [`shard ${row % shards}`];
  if (replicas > 1) part.unshift(`replica ${Math.floor(row / shards)}`);
  box.append(svg('title', {}, `stage ${stage}, ${part.join(', ')}: ${name}${worker ? `, ${worker.state.replace('_', ' ')}` : ''}`));
  box.append(svg('rect', { class: `cell ${is}`, x: x + 0.5, y: y + 0.5, width: size.cell - 1, height: size.tall - 1, rx: 5 }));
  // Letters of 12 px are 7.3 px wide here.
  const room = Math.floor((size.cell - 14) / 7.3);
  if (size.tall >= 14 && room >= 2) {
    const two = size.tall >= 34 && room >= 8;
    box.append(svg('text', { class: 'strong', x: x + 8, y: y + (two ? size.tall / 2 - 3 : size.tall / 2 + 4) }, cut(name, room)));
    if (two) box.append(svg('text', { x: x + 8, y: y + size.tall / 2 + 13 }, cut(part.join(', '), room)));
  }
  root.append(box);
  return worker && is !== 'bad' ? 0 : 1;
}

const cut = (text, room) => (text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`);

/** Both directions of a pair are one line, as wide as there is much on it. */
function drawLinks(root, loads, { size, rows, host }) {
  const pairs = new Map();
  for (const [from, to, load] of loads) {
    const key = from < to ? `${from}-${to}` : `${to}-${from}`;
    const pair = pairs.get(key) ?? { a: Math.min(from, to), b: Math.max(from, to), load: 0, known: load !== null };
    pair.load += load ?? 0;
    pairs.set(key, pair);
  }
  const most = Math.max(1, ...[...pairs.values()].map((pair) => pair.load));
  for (const { a, b, load, known } of pairs.values()) {
    const [stageA, stageB] = [Math.floor(a / rows), Math.floor(b / rows)];
    const inside = host.get(a) !== undefined && host.get(a) === host.get(b);
    const stroke = inside ? 1.5 : Math.max(1.5, 7 * Math.sqrt(load / most));
    const line = stageA === stageB ? arc(stageA, a % rows, b % rows, size) : across(stageA, stageB, a % rows, b % rows, size);
    const drawn = svg('path', { class: `link${inside ? ' inside' : ''}${known ? '' : ' plain'}`, d: line.d, 'stroke-width': stroke.toFixed(1), 'stroke-opacity': inside ? 1 : 0.75 });
    drawn.append(svg('title', {}, `cell ${a} and cell ${b}${known ? `: ${asRate(load)}` : ''}${inside ? ', inside one worker' : ''}`));
    root.append(drawn);
    if (known && pairs.size <= LABELLED_MAX && line.room >= 72) {
      root.append(svg('text', { x: line.x, y: line.y, 'text-anchor': 'middle' }, asRate(load)));
    }
  }
}

function across(stageA, stageB, rowA, rowB, size) {
  const [x1, x2] = [size.x(stageA) + size.cell + 3, size.x(stageB) - 3];
  const [y1, y2] = [size.y(rowA) + size.tall / 2, size.y(rowB) + size.tall / 2];
  const middle = (x1 + x2) / 2;
  // Not straight: through the stages between them it would look like theirs.
  const bend = stageB - stageA > 1 ? size.height : 0;
  const d = bend ? `M${x1},${y1}C${x1 + 20},${bend} ${x2 - 20},${bend} ${x2},${y2}` : `M${x1},${y1}C${middle},${y1} ${middle},${y2} ${x2},${y2}`;
  return { d, x: middle, y: (y1 + y2) / 2 - 7, room: bend || rowA !== rowB ? 0 : x2 - x1 };
}

/** Between shards of one stage: a bracket at its right, with the load beside it. */
function arc(stage, rowA, rowB, size) {
  const x = size.x(stage) + size.cell + 2;
  const [y1, y2] = [size.y(rowA) + size.tall * 0.72, size.y(rowB) + size.tall * 0.28];
  const out = Math.min(26, 12 + 4 * (rowB - rowA));
  return { d: `M${x},${y1}C${x + out},${y1} ${x + out},${y2} ${x},${y2}`, x: x + 62, y: (y1 + y2) / 2 + 4, room: rowB - rowA === 1 && size.gap >= LABEL_GAP ? 72 : 0 };
}

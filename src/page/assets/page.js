// What was told, and what of it is drawn anew: nothing is asked here, and nothing is decided.

import { byId, say } from './draw.js';
import { drawCells } from './cells.js';
import { drawExperts } from './experts.js';
import { figures } from './figures.js';
import { listen } from './live.js';
import { drawLoss, grow } from './loss.js';
import { drawCluster, drawEvents, drawWorkers } from './tables.js';
import { drawTimeline } from './timeline.js';

/** The newest of every part. */
const known = {};

/** Which pictures show which parts. */
const PICTURES = [
  [['run'], ({ run }) => figures(run)],
  [['grid', 'workers', 'links', 'run'], drawCells],
  [['losses', 'heldout'], drawLoss],
  [['timeline', 'workers', 'grid'], drawTimeline],
  [['experts'], drawExperts],
  [['workers'], drawWorkers],
  [['cluster'], drawCluster],
  [['events'], drawEvents],
];

let stale = new Set();

function changed(names) {
  if (stale.size === 0) requestAnimationFrame(draw);
  for (const name of names) stale.add(name);
}

function draw() {
  const names = stale;
  stale = new Set();
  for (const [parts, picture] of PICTURES) {
    if (parts.some((part) => names.has(part))) picture(known);
  }
}

function event({ parts, losses, heldout }) {
  Object.assign(known, parts);
  const names = Object.keys(parts);
  for (const [name, curve] of Object.entries({ losses, heldout })) {
    if (curve) {
      grow(name, curve);
      names.push(name);
    }
  }
  if (names.length > 0) changed(names);
}

let now = { is: 'new' };
let ticking = null;

function state(next) {
  now = next;
  const line = byId('connection');
  line.classList.toggle('live', now.is === 'live');
  line.classList.toggle('gone', now.is === 'gone');
  document.body.classList.toggle('old', now.is === 'gone');
  clearInterval(ticking);
  if (now.is === 'gone') {
    const at = now.since.toLocaleTimeString([], { hour12: false });
    say('connected', `not connected since ${at}: ${now.why}`);
    tick();
    // The countdown is for eyes alone: it would be read aloud every second.
    if (now.again) ticking = setInterval(tick, 1000);
  } else {
    say('connected', 'live');
    say('again', '');
  }
}

function tick() {
  const seconds = now.again ? Math.max(0, Math.ceil((now.again - Date.now()) / 1000)) : null;
  say('again', seconds === null ? '' : seconds === 0 ? '; trying' : `; again in ${seconds} s`);
}

const redraw = () => changed(Object.keys(known).concat('losses'));
let resizing = null;
addEventListener('resize', () => {
  clearTimeout(resizing);
  resizing = setTimeout(redraw, 100);
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
listen({ event, state });

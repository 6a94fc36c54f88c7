// Workers, rigs, jobs and events. Every name in here is somebody else's word: it becomes text and nothing else.

import { byId, html, rate, say } from './draw.js';

const COLOURS = {
  training: 'good', finished: 'good', ready: 'good', yielding: 'warn', draining: 'warn', preparing: 'warn',
  connecting: 'warn', cut_off: 'bad', lost: 'bad', away: 'bad', busy: 'good',
};

export function drawWorkers({ workers }) {
  if (!workers) return;
  byId('workers').replaceChildren(...workers.map((worker) => {
    const is = worker.state.replace('_', ' ');
    const more = [];
    if (worker.slow) more.push('slow');
    if (worker.yields_to) more.push(`to ${worker.yields_to}`);
    if (worker.quarantine) more.push(`no cells for ${worker.quarantine} s`);
    const state = html('span', `state ${worker.slow ? 'warn' : COLOURS[worker.state] ?? ''}`, [is, ...more].join(', '));
    return row([
      worker.name, state, worker.cells.join(' ') || '–',
      [worker.pace?.toFixed(2) ?? '–'], [worker.heard === null ? '–' : `${Math.round(worker.heard)} s`],
      [rate(worker.sent)], [rate(worker.received)], [String(worker.losses)],
    ]);
  }));
  const training = workers.filter((worker) => worker.state === 'training').length;
  say('workers-says', `${training} of ${workers.length} train`);
}

export function drawCluster({ cluster }) {
  document.querySelector('section.rigs').hidden = !cluster;
  if (!cluster) return;
  byId('rigs').replaceChildren(...cluster.rigs.map((rig) => {
    const does = rig.job ? `${rig.job}${rig.worker === null ? '' : ` as ${rig.worker}`}` : '–';
    const state = html('span', `state ${COLOURS[rig.is] ?? ''}`, rig.cordoned ? `${rig.is}, cordoned` : rig.is);
    return row([rig.name, state, does, [rig.heard === null ? '–' : `${rig.heard} s`]]);
  }));
  byId('jobs').replaceChildren(...cluster.jobs.map((job) => html('li', '', `job ${job.name} is ${job.phase}${job.why ? `: ${job.why}` : ''}`)));
  say('rigs-says', `${count(cluster.rigs, 'rig')}, ${count(cluster.jobs, 'job')}`);
}

const count = (list, one) => `${list.length} ${one}${list.length === 1 ? '' : 's'}`;

/** A text, an element, or a number in a list of one. */
function row(columns) {
  const line = html('tr');
  for (const column of columns) {
    const cell = html('td', Array.isArray(column) ? 'n' : '');
    if (column instanceof Node) cell.append(column);
    else cell.textContent = Array.isArray(column) ? column[0] : column;
    if (line.childElementCount === 0) cell.title = cell.textContent;
    line.append(cell);
  }
  return line;
}

/** The newest first: that is what one comes for. */
export function drawEvents({ events }) {
  if (!events) return;
  const items = events.map((event) => {
    const item = html('li');
    // When, step, kind and the rest; whatever has another form stays whole.
    const parts = /^(\S+)\s+(step \d+)\s+([^:]+):(.*)$/.exec(event);
    if (!parts) item.textContent = event;
    else item.append(html('span', 'when', `${parts[1]} ${parts[2]}`), html('span', 'what', parts[3]), parts[4]);
    return item;
  });
  byId('events').replaceChildren(...(items.length > 0 ? items.reverse() : [html('li', 'none', 'nothing has happened yet')]));
  say('events-says', events.length > 0 ? 'the newest first' : '');
}

// The line of figures, the head of the page, and what is said where something is not well.

import { byId, duration, say, short, svg, whole } from './draw.js';

const GOOD = ['training'];
const BAD = ['recovering'];
const SPEEDS_MAX = 96;
const speeds = [];

export function figures(run) {
  const name = run.name ?? run.title ?? 'a run';
  say('name', name);
  byId('name').title = run.title ?? '';
  const phase = byId('phase');
  phase.hidden = !run.phase;
  if (run.phase) {
    say('phase', run.phase);
    phase.className = `pill ${GOOD.includes(run.phase) ? 'good' : BAD.includes(run.phase) ? 'bad' : 'warn'}`;
  }
  document.title = run.phase ? `${run.phase} ${run.step ?? ''} · ${name} · shoal` : `${name} · shoal`;
  const why = [run.trouble, run.why].filter(Boolean).join(' · ');
  byId('why').hidden = !why;
  say('why', why);
  // Nobody answered: what was known stands.
  if (run.step === undefined) return;
  say('step', whole(run.step));
  say('of', `of ${whole(run.steps)}`);
  byId('progress').max = Math.max(1, run.steps);
  byId('progress').value = run.step;
  say('loss', run.loss === null ? '–' : run.loss.toFixed(4));
  say('loss-under', run.loss === null ? '' : `perplexity ${short(Math.exp(Math.min(run.loss, 40)))}`);
  say('speed', short(run.tokens_per_second));
  say('left', run.phase === 'training' ? duration(run.seconds_left) : '–');
  say('step-time', run.seconds_per_step === null ? '' : `${duration(run.seconds_per_step)} a step`);
  say('saved', run.checkpoint_step ? whole(run.checkpoint_step) : 'none');
  say('in-memory', run.snapshot_step ? `in memory ${whole(run.snapshot_step)}` : 'none in memory');
  say('plan', String(run.generation));
  say('recoveries', run.recoveries === 1 ? '1 recovery' : `${run.recoveries} recoveries`);
  spark(run.tokens_per_second);
}

function spark(speed) {
  if (speed === null) return;
  speeds.push(speed);
  if (speeds.length > SPEEDS_MAX) speeds.shift();
  const most = Math.max(...speeds) * 1.05 || 1;
  // Few are drawn wider, so that there is something to see from the first minute on.
  const room = Math.max(24, speeds.length);
  const x = (n) => ((n / (room - 1)) * 96).toFixed(1);
  const points = speeds.map((value, n) => `${x(room - speeds.length + n)},${(15.5 - (value / most) * 15).toFixed(1)}`);
  byId('spark').replaceChildren(svg('path', { d: `M${points.join('L')}` }));
}

// The line to /live: reads its events, and takes the line up again with more and more patience when it ends. Nothing is
// drawn here.

const FIRST_MS = 500;
const LONGEST_MS = 15000;
// The other end says something at least every 10 s.
const SILENT_MS = 25000;
// A page that nobody sees asks nothing after a while.
const UNSEEN_MS = 20000;

/** Says `event` for each, and `state({is, since, again, why})` whenever the line begins, ends or is tried. */
export function listen({ event, state }) {
  let wait = FIRST_MS;
  let since = null;
  let running = null;
  let timer = null;
  let unseen = null;

  function later(why, final) {
    since ??= new Date();
    if (document.hidden || final) {
      state({ is: 'gone', since, again: null, why });
      return;
    }
    const ms = Math.round(wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, LONGEST_MS);
    state({ is: 'gone', since, again: new Date(Date.now() + ms), why });
    timer = setTimeout(begin, ms);
  }

  async function begin() {
    clearTimeout(timer);
    if (running) return;
    const line = new AbortController();
    running = line;
    let silent = setTimeout(() => line.abort(), SILENT_MS);
    const heard = () => {
      clearTimeout(silent);
      silent = setTimeout(() => line.abort(), SILENT_MS);
    };
    let why = 'nobody answers: the run may be over';
    let final = false;
    try {
      const answer = await fetch('/live', { signal: line.signal, cache: 'no-store' });
      if (answer.ok) {
        await read(answer.body.getReader(), heard, (data) => {
          wait = FIRST_MS;
          since = null;
          event(data);
          state({ is: 'live' });
        });
        why = 'it hung up';
      } else {
        why = (await answer.text()).trim();
        // Another cookie does not come by waiting.
        final = answer.status === 401 || answer.status === 403;
      }
    } catch {
      // Said by `why` as it is.
    }
    clearTimeout(silent);
    running = null;
    later(why, final);
  }

  document.addEventListener('visibilitychange', () => {
    clearTimeout(unseen);
    if (document.hidden) {
      unseen = setTimeout(() => {
        clearTimeout(timer);
        running?.abort();
      }, UNSEEN_MS);
    } else {
      wait = FIRST_MS;
      begin();
    }
  });
  begin();
}

/** The data of server-sent events, one line each; what begins with a colon only says that somebody is there. */
async function read(reader, heard, each) {
  const decoder = new TextDecoder();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data: ')) each(JSON.parse(line.slice(6)));
    }
  }
}

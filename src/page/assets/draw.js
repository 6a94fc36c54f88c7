// What all pictures need: elements, and numbers as they are read.

const SVG = 'http://www.w3.org/2000/svg';

/** An element of SVG. Text is text, whatever is in it. */
export function svg(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** An element of HTML, likewise. */
export function html(name, className = '', text = null) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Changes a text only where it differs: a reader's selection and a screen reader are left alone. */
export function say(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** A colour of the style sheet, as it is now. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** 1234567 as 1.23M. */
export function short(value) {
  if (value === null || value === undefined) return '–';
  const steps = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']];
  for (const [unit, letter] of steps) {
    if (Math.abs(value) >= unit) return (value / unit).toPrecision(3) + letter;
  }
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

/** Bytes a second. */
export function rate(value) {
  const [, number, letter] = /^([\d.]+)(\D?)$/.exec(short(value)) ?? [];
  return number === undefined ? '–' : `${number}\u2009${letter}B/s`;
}

/** Round numbers from `low` to `high`, about so many. */
export function nice(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? rough;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found.length > 0 ? found : [low, high];
}

export const whole = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, '\u2009');

/** Seconds as a person says them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, '0');
  const [days, hours, minutes] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return days > 0 ? `${days} d ${hours} h` : `${hours}:${two(minutes)}:${two(s % 60)}`;
}

/** How wide a picture may be. */
export const widthOf = (element) => Math.max(200, Math.floor(element.clientWidth));

/** A canvas of this size, sharp on this screen; what it shows is said by `label`. */
export function canvas(parent, height, label) {
  let element = parent.querySelector('canvas');
  if (!element) {
    parent.replaceChildren();
    element = html('canvas');
    element.setAttribute('role', 'img');
    element.tabIndex = 0;
    parent.append(element);
  }
  const width = widthOf(parent);
  const ratio = window.devicePixelRatio || 1;
  element.width = Math.round(width * ratio);
  element.height = Math.round(height * ratio);
  element.style.height = `${height}px`;
  element.setAttribute('aria-label', label);
  const context = element.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = `12px ${getComputedStyle(element).fontFamily}`;
  return { element, context, width, height };
}

/** Arrow keys, home and end, and the pointer: `move` gets steps to the right and down, `point` a place. */
export function steer(element, move, point, leave) {
  element.addEventListener('keydown', (pressed) => {
    const steps = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
      PageUp: [-20, 0], PageDown: [20, 0], Home: [-Infinity, 0], End: [Infinity, 0],
    }[pressed.key];
    if (pressed.key === 'Escape') leave();
    if (!steps || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
    pressed.preventDefault();
    move(...steps);
  });
  element.addEventListener('pointermove', (at) => {
    const box = element.getBoundingClientRect();
    point(at.clientX - box.left, at.clientY - box.top);
  });
  element.addEventListener('pointerleave', leave);
  element.addEventListener('blur', leave);
}

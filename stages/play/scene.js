// The scene: which objects are asked for and where, by mouse, touch and keyboard.

import { icon, shape, svg } from "./shapes.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.02; // of the floor's side; five times as far with Shift
const CLICK = 6; // pixels that a pointer may move and still click
const MIDDLE = [0.5, 0.5];

const NEAR_MIDDLE = Array.from({ length: 81 }, (_, i) => [0.1 + 0.1 * (i % 9), 0.1 + 0.1 * Math.floor(i / 9)]);

const clamp = (value) => Math.round(Math.min(1, Math.max(0, value)) * 1000) / 1000;

/** Radius of an object on the floor, in parts of its side: farther up is farther away, as in the training pictures. */
const radius = (y) => 0.057 + 0.136 * y;

export class Scene {
  /** `known`: the objects of the experiment; `most`: how many a picture may have; `changed(words)`: called after each change. */
  constructor(known, most, changed) {
    this.known = new Map(known.map((object) => [object.name, object]));
    this.most = most;
    this.changed = changed;
    this.objects = []; // {name, place: [x, y] or null}, in the order of asking
    this.floor = document.getElementById("floor");
    this.placed = document.getElementById("placed");
    this.tray = document.getElementById("tray");
    this.palette = document.getElementById("palette");
    for (const object of known) this.palette.append(this.#choice(object));
    this.palette.classList.toggle("plain", known.some((object) => !object.shape));
    for (let i = 1; i < 10; i++) {
      const line = { x1: 0, x2: 100, y1: i * 10, y2: i * 10 };
      const across = { y1: 0, y2: 100, x1: i * 10, x2: i * 10 };
      document.getElementById("grid").append(svg("line", line), svg("line", across));
    }
  }

  /** Takes over a whole list of objects, as from a link. */
  set(objects) {
    this.objects = [];
    for (const { name, place } of objects) {
      if (this.known.has(name) && !this.find(name) && this.objects.length < this.most) {
        this.objects.push({ name, place: place && place.map(clamp) });
      }
    }
    this.#show();
  }

  find(name) {
    return this.objects.find((object) => object.name === name);
  }

  /** Adds an object or moves it. Returns false if the scene is full. */
  put(name, place) {
    const object = this.find(name);
    if (!object && this.objects.length >= this.most) {
      this.changed(`A picture has at most ${this.most} objects: remove one first`);
      return false;
    }
    const at = place && place.map(clamp);
    if (object) object.place = at;
    else this.objects.push({ name, place: at });
    this.#show();
    this.changed(at ? `${name} at ${at[0].toFixed(2)} ${at[1].toFixed(2)}` : `${name}, anywhere`);
    return true;
  }

  remove(name) {
    this.objects = this.objects.filter((object) => object.name !== name);
    this.#show();
    this.changed(`${name} removed`);
  }

  #choice(object) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.name = object.name;
    button.title = object.name;
    button.setAttribute("aria-label", object.name);
    button.append(icon(object));
    if (!object.shape) button.append(object.name);
    this.#draggable(button, object.name, () => (this.find(object.name) ? this.remove(object.name) : this.put(object.name, null)));
    return button;
  }

  /** Makes an element drag `name` onto the floor or off it; `click()` if it was only touched, `press()` without a pointer. */
  #draggable(element, name, click, press = click) {
    element.addEventListener("pointerdown", (down) => {
      if (down.button !== 0) return;
      down.preventDefault();
      element.focus({ preventScroll: true });
      const drag = { ghost: null, last: down };
      const within = (event) => {
        const box = this.floor.getBoundingClientRect();
        const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
        return { box, place: [x, y], inside: x >= 0 && x <= 1 && y >= 0 && y <= 1 };
      };
      const move = (event) => {
        drag.last = event;
        const far = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY);
        if (!drag.ghost && far < CLICK) return;
        drag.ghost ??= this.#ghost(name);
        const { box, place, inside } = within(event);
        const side = 2.6 * box.width * radius(inside ? place[1] : 0.45);
        drag.ghost.setAttribute("width", side);
        drag.ghost.style.transform = `translate(${event.clientX - side / 2}px, ${event.clientY - side / 2}px)`;
        drag.ghost.classList.toggle("outside", !inside);
      };
      const over = new AbortController();
      const end = (event) => {
        over.abort();
        drag.ghost?.remove();
        this.#dragged(name, false);
        if (event.type === "pointercancel" || event.type === "keydown") return;
        if (!drag.ghost) return click();
        const { place, inside } = within(event);
        if (inside) this.put(name, place) && this.#focus(name);
        else if (element.matches(".object")) this.remove(name); // not for a hand that slipped on the palette
      };
      const listen = (type, handler) => window.addEventListener(type, handler, { signal: over.signal });
      const own = (handler) => (event) => event.pointerId === down.pointerId && handler(event); // not another finger's
      listen("pointermove", own(move));
      listen("pointerup", own(end));
      listen("pointercancel", own(end));
      listen("keydown", (event) => event.key === "Escape" && end(event));
    });
    element.addEventListener("click", (event) => event.detail === 0 && press()); // by keyboard or a screen reader
  }

  #ghost(name) {
    this.#dragged(name, true);
    const ghost = icon(this.known.get(name));
    ghost.classList.add("ghost");
    document.body.append(ghost);
    return ghost;
  }

  #dragged(name, is) {
    for (const element of document.querySelectorAll("[data-name]")) {
      element.classList.toggle("dragged", is && element.dataset.name === name && element.closest("#placed, #tray") !== null);
    }
  }

  /** Removes an object whose element has the focus, which goes to the palette: else it would be lost. */
  #removeFocused(name) {
    this.remove(name);
    this.palette.querySelector(`[data-name="${CSS.escape(name)}"]`).focus({ preventScroll: true });
  }

  #focus(name) {
    document.querySelector(`:is(#placed, #tray) [data-name="${CSS.escape(name)}"]`)?.focus({ preventScroll: true });
  }

  #keys(event, name) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own: Alt+Left goes back
    const object = this.find(name);
    if (event.key === "Delete" || event.key === "Backspace") {
      this.#removeFocused(name);
    } else if (event.key in ARROWS) {
      const step = event.shiftKey ? 5 * STEP : STEP;
      const [x, y] = object.place ?? this.#free();
      const [dx, dy] = object.place ? ARROWS[event.key] : [0, 0];
      this.put(name, [x + dx * step, y + dy * step]);
      this.#focus(name);
    } else if (event.key === "Enter" || event.key === " ") {
      this.#toggle(name);
    } else return;
    event.preventDefault();
  }

  /** Puts an object onto the floor, or lets the program choose its place. */
  #toggle(name) {
    this.put(name, this.find(name).place ? null : this.#free());
    this.#focus(name);
  }

  /** Returns the place nearest to the middle at which an object covers no other, or else the one with the most room. */
  #free() {
    const room = ([x, y]) =>
      Math.min(0, ...this.objects.filter(({ place }) => place).map(({ place }) =>
        Math.hypot(x - place[0], y - place[1]) - radius(y) - radius(place[1])));
    const far = ([x, y]) => Math.hypot(x - MIDDLE[0], y - MIDDLE[1]);
    return NEAR_MIDDLE.toSorted((one, other) => room(other) - room(one) || far(one) - far(other))[0];
  }

  #show() {
    const [placed, anywhere] = [this.objects.filter((o) => o.place), this.objects.filter((o) => !o.place)];
    const byDepth = [...placed].sort((a, b) => a.place[1] - b.place[1]);
    this.placed.replaceChildren(...byDepth.map((object) => this.#onFloor(object)));
    this.tray.replaceChildren(...anywhere.map((object) => this.#inTray(object)));
    this.tray.classList.toggle("empty", !anywhere.length);
    document.getElementById("hint").classList.toggle("hidden", placed.length > 0);
    document.getElementById("how-many").textContent = `${this.objects.length} of ${this.most}`;
    for (const button of this.palette.children) {
      const chosen = this.find(button.dataset.name) !== undefined;
      button.setAttribute("aria-pressed", String(chosen));
      button.setAttribute("aria-disabled", String(!chosen && this.objects.length >= this.most));
    }
  }

  #onFloor({ name, place }) {
    const [x, y] = place;
    const size = 100 * radius(y);
    const body = svg("g", { transform: `translate(${100 * x} ${100 * y}) scale(${size})` }, shape(this.known.get(name)));
    for (const ring of ["focus under", "focus"]) body.append(svg("circle", { r: "1.12", class: ring })); // black and white
    const where = `${name} at ${x.toFixed(2)} ${y.toFixed(2)}`;
    const group = svg("g", { class: "object", tabindex: "0", role: "button", "data-name": name }, body);
    group.setAttribute("aria-label", `${where}. Arrow keys move it, Delete removes it, Enter lets the program choose.`);
    group.addEventListener("keydown", (event) => this.#keys(event, name));
    this.#draggable(group, name, () => {}, () => this.#toggle(name));
    return group;
  }

  #inTray({ name }) {
    const chip = document.createElement("span");
    const body = document.createElement("button");
    const remove = document.createElement("button");
    chip.className = "chip";
    body.type = remove.type = "button";
    body.dataset.name = name;
    body.className = "body";
    body.append(icon(this.known.get(name)), name);
    body.setAttribute("aria-label", `${name}, anywhere. Arrow keys or Enter put it on the floor, Delete removes it.`);
    body.addEventListener("keydown", (event) => this.#keys(event, name));
    this.#draggable(body, name, () => {}, () => this.#toggle(name));
    remove.className = "remove";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => this.#removeFocused(name));
    chip.append(body, remove);
    return chip;
  }
}

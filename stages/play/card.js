// The card of one model: its pictures as they arrive, what the judge found, the steps to view again, downloads.

import { svg } from "./shapes.js";

const SIDE = 256; // pixels of a picture in a download, at least
const COLUMNS = 4;

/** Makes an HTML element with properties and children. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export class Card {
  /** `model`: as the experiment describes it; `asked`: the request; `gif(card)`: called to download the denoising. */
  constructor(model, asked, gif) {
    this.model = model;
    this.asked = asked;
    this.frames = []; // {step, of, pictures, noisy}
    this.pictures = null; // the final ones
    this.verdicts = null;
    this.at = 0; // the picture shown large
    this.noise = false;
    this.summary = "";
    const names = asked.objects.map((object) => object.name).join(", ");
    this.image = element("img", { alt: "", className: "large", draggable: false });
    this.label = `${model.title}: ${names}`;
    this.progress = element("progress", { max: 1, value: 0 });
    this.progress.setAttribute("aria-label", `Progress of ${model.title}`);
    this.time = element("span", { className: "time" });
    this.scrub = element("input", { type: "range", min: "1", step: "1", className: "scrub", hidden: true });
    this.scrub.setAttribute("aria-label", `Step shown, ${model.title}`);
    this.scrub.addEventListener("input", () => this.#paint());
    this.thumbs = element("div", { className: "thumbs", hidden: asked.count === 1 });
    this.thumbs.append(...Array.from({ length: asked.count }, (_, i) => this.#thumb(i)));
    this.verdict = element("ul", { className: "verdict" });
    this.total = element("p", { className: "total" });
    this.png = this.#button("PNG", () => this.#savePng());
    this.gif = this.#button("GIF", () => this.gif.getAttribute("aria-disabled") === "true" || gif(this));
    this.gif.hidden = true; // until there is a denoising to show
    const figure = element("div", { className: "figure" }, this.image, this.#rings());
    const foot = element("div", { className: "row foot" }, this.total, this.png, this.gif);
    const head = element("div", { className: "row" }, element("h3", { textContent: model.title }), this.time);
    const note = !model.places && asked.objects.some((object) => object.place);
    this.element = element("article", { className: "card result" }, head, figure, this.progress, this.scrub, this.thumbs);
    if (note) this.element.append(element("p", { className: "help", textContent: "This model takes no places." }));
    this.element.append(this.verdict, foot);
    this.element.dataset.model = model.name;
  }

  get fileName() {
    const names = this.asked.objects.map((object) => object.name).join("_").replace(/[^\p{L}\p{N}_]+/gu, "-");
    return `${names.slice(0, 80)}_${this.model.name}_${this.asked.seed}`;
  }

  /** Shows a step of the denoising. */
  step(event) {
    this.frames.push(event);
    this.progress.max = event.of;
    this.progress.value = event.step;
    this.#paint(event);
  }

  /** Shows the final pictures and what the judge says. */
  done(event) {
    this.pictures = event.pictures;
    this.verdicts = event.verdicts;
    this.time.textContent = event.seconds < 1 ? `${Math.round(1000 * event.seconds)} ms` : `${event.seconds.toFixed(1)} s`;
    this.png.disabled = this.gif.disabled = false;
    if (this.frames.length > 1) {
      Object.assign(this.scrub, { max: this.frames.length, value: this.frames.length, hidden: false });
      this.gif.hidden = false;
    }
    const all = event.verdicts?.flat() ?? [];
    const found = all.filter((verdict) => verdict.found).length;
    this.summary = `${this.model.title} ${found} of ${all.length} found`;
    if (this.asked.count > 1) this.total.textContent = `${found} of ${all.length} objects found`;
    this.settle();
    this.#paint();
  }

  /** Ends the progress, whether or not the pictures came. */
  settle() {
    this.progress.hidden = true;
    this.element.classList.toggle("unfinished", this.pictures === null);
  }

  /** Whether steps show the noisy sample, or the picture predicted from it, and whether the server draws for this page. */
  mode(noise, draws) {
    this.noise = noise;
    this.gif.setAttribute("aria-disabled", String(draws)); // `disabled` would take the focus away
    this.#paint();
  }

  #button(words, click) {
    const button = element("button", { type: "button", className: "quiet", textContent: words, disabled: true });
    button.setAttribute("aria-label", `Download as ${words}, ${this.model.title}`);
    button.addEventListener("click", click);
    return button;
  }

  #thumb(i) {
    const button = element("button", { type: "button" }, element("img", { alt: "", draggable: false }));
    button.addEventListener("click", () => ((this.at = i), this.#paint()));
    return button;
  }

  /** Rings where the objects were asked for, shown by a class of the body. */
  #rings() {
    const rings = svg("svg", { viewBox: "0 0 100 100", class: "overlay", "aria-hidden": "true" });
    for (const { place } of this.model.places ? this.asked.objects : []) {
      if (place) rings.append(svg("circle", { cx: 100 * place[0], cy: 100 * place[1], r: 4 }));
    }
    return rings;
  }

  #shown(frame) {
    if (!frame && this.pictures && Number(this.scrub.value) >= this.frames.length) return this.pictures;
    frame ??= this.frames[this.pictures ? Number(this.scrub.value) - 1 : this.frames.length - 1];
    return frame && (this.noise ? frame.noisy : frame.pictures);
  }

  /** Says which step is seen: the slider counts the frames, and of many steps only some have one. */
  #sayStep() {
    const frame = this.frames[Number(this.scrub.value) - 1];
    if (frame) this.scrub.setAttribute("aria-valuetext", `step ${frame.step} of ${frame.of}`);
  }

  #paint(frame) {
    this.#sayStep();
    const pictures = this.#shown(frame) ?? this.pictures;
    if (!pictures) return;
    this.image.src = pictures[this.at];
    this.image.alt = this.asked.count > 1 ? `${this.label}, picture ${this.at + 1}` : this.label;
    [...this.thumbs.children].forEach((button, i) => {
      button.firstChild.src = pictures[i];
      button.setAttribute("aria-pressed", String(i === this.at));
      const of = this.verdicts?.[i];
      const missed = of?.filter((verdict) => !verdict.found).length;
      button.className = of ? (missed ? "missed" : "found") : "";
      button.setAttribute("aria-label", `Picture ${i + 1}${of ? `, ${missed ? `${missed} not found` : "all found"}` : ""}`);
    });
    this.verdict.replaceChildren(...(this.verdicts?.[this.at] ?? []).map((verdict) => this.#word(verdict)));
  }

  #word({ object, found, instead, pixels }) {
    const item = element("li", { className: found ? "found" : "missed" });
    const off = found && pixels !== null ? `, ${pixels.toFixed(1)} pixels off` : "";
    const other = instead ? `, rather a ${instead}` : "";
    item.append(
      element("strong", { textContent: object }),
      element("span", { textContent: found ? ` found${off}` : ` not found${other}` }),
    );
    return item;
  }

  /** Saves the final pictures in one PNG, each enlarged by a whole factor without smoothing. */
  async #savePng() {
    const images = await Promise.all(this.pictures.map(async (url) => {
      const image = element("img", { src: url });
      await image.decode();
      return image;
    }));
    const side = images[0].naturalWidth * Math.max(1, Math.floor(SIDE / images[0].naturalWidth));
    const columns = Math.min(COLUMNS, images.length);
    const canvas = element("canvas", { width: side * columns, height: side * Math.ceil(images.length / columns) });
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    images.forEach((image, i) => pen.drawImage(image, (i % columns) * side, Math.floor(i / columns) * side, side, side));
    const blob = await new Promise((done) => canvas.toBlob(done));
    const url = URL.createObjectURL(blob);
    element("a", { href: url, download: `${this.fileName}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
}

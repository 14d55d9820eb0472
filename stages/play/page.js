// The page of `make play`: what is asked for, the stream of pictures, and the link that holds it all.

import { Card } from "./card.js";
import { Scene } from "./scene.js";

const $ = (id) => document.getElementById(id);
const TRIES = 5; // of a request that is told to come back
const RANDOM_OBJECTS = 3;
const HERE = ["localhost", "127.0.0.1", "[::1]"];
// Browsers take 100 changes of the address in 30 s (Safari) or 200 in 10 s: BURST at once, then one each PAUSE ms.
const BURST = 20;
const PAUSE = 400;

const address = { next: -Infinity, timer: 0 };
let experiment, scene, running = null;
let again = false; // whether to draw when what runs has ended
const cards = new Map(); // model -> Card

const chosenModels = () => [...$("models").querySelectorAll("input:checked")].map((box) => box.value);
const facts = (name) => experiment.models.find((model) => model.name === name);
const takes = (models, setting) => models.some((name) => (facts(name)?.[setting] ?? null) !== null);
const random = (below) => Math.floor(Math.random() * below);

/** Writes objects as LABELS of `make sample`: "red cube at 0.300 0.600, cyan sphere". */
const written = (objects) =>
  objects.map(({ name, place }) => name + (place ? ` at ${place.map((v) => v.toFixed(3)).join(" ")}` : "")).join(", ");

/** Quotes LABELS for the shell. What the shell would replace is also kept from Make and from the recipe's own quotes. */
function quoted(labels) {
  if (!/["$`\\!]/.test(labels)) return `"${labels}"`;
  const inRecipe = labels.replace(/["$`\\]/g, "\\$&").replaceAll("$", "$$$$"); // the last are $$
  return `'${inRecipe.replaceAll("'", "'\\''")}'`;
}

/** Reads what `written` wrote. Whatever it is, only known names and numbers come out. */
function readObjects(text) {
  return (text ?? "").split(",").map((part) => part.trim()).filter(Boolean).map((part) => {
    if (scene.known.has(part)) return { name: part, place: null };
    const [, name, x, y] = part.match(/^(.*) at (\d*\.?\d+) (\d*\.?\d+)$/) ?? [];
    return { name, place: name ? [Number(x), Number(y)] : null };
  });
}

function state() {
  const models = chosenModels();
  const objects = structuredClone(scene.objects); // a request asks for the scene as it was, whatever is moved later
  const asked = { objects, models, count: $("eight").checked ? experiment.limits.count : 1, seed: Number($("seed").value) };
  for (const id of ["steps", "guidance"]) if (takes(models, id)) asked[id] = Number($(id).value);
  return asked;
}

/** Returns the address that brings the whole state back. */
function link() {
  const { objects, models, count, seed } = state();
  const hash = new URLSearchParams({ objects: written(objects), models: models.join(","), count, seed });
  hash.set("steps", $("steps").value);
  hash.set("guidance", $("guidance").value);
  if ($("rings").checked) hash.set("marks", "1");
  if ($("noise").checked) hash.set("noise", "1");
  return `${location.href.split("#")[0]}#${hash}`;
}

/** Writes the state into the address: at once, but after many times only after a pause, as it is then. */
function toAddress() {
  clearTimeout(address.timer);
  const now = performance.now();
  if (address.next > now) return void (address.timer = setTimeout(toAddress, address.next - now));
  address.next = Math.max(address.next, now - BURST * PAUSE) + PAUSE;
  history.replaceState(null, "", link());
}

/** Lets the browser's Back bring the scene back that is about to go. */
function keep() {
  if (!scene.objects.length) return;
  history.replaceState(null, "", link());
  history.pushState(null, "", link());
}

/** Takes the state over from the link. Values that make no sense are left at the defaults. Returns whether there was one. */
function fromHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const number = (id, words) => {
    const field = $(id);
    if (words !== null && words !== "" && Number.isFinite(Number(words))) {
      field.value = Math.min(Number(field.max || Infinity), Math.max(Number(field.min), Number(words)));
    }
  };
  for (const id of ["steps", "guidance", "seed"]) number(id, hash.get(id));
  $("seed").value = Math.round($("seed").value);
  const models = (hash.get("models") ?? "").split(",").filter(facts);
  const said = models.length > 0 || hash.get("models") === ""; // that there is none is said too
  for (const box of $("models").querySelectorAll("input")) if (said) box.checked = models.includes(box.value);
  $("eight").checked = Number(hash.get("count")) > 1;
  $("rings").checked = hash.get("marks") === "1";
  $("noise").checked = hash.get("noise") === "1";
  scene.set(readObjects(hash.get("objects")));
  return scene.objects.length > 0;
}

/** Brings everything that follows from the state up to date. */
function refresh() {
  const { objects, models, count, seed } = state();
  for (const id of ["steps", "guidance"]) {
    $(id).disabled = !takes(models, id);
    $(`${id}-shown`).textContent = $(id).disabled ? "–" : $(id).value;
  }
  $("draw").disabled = !running && !(objects.length && models.length);
  document.body.classList.toggle("rings", $("rings").checked);
  for (const card of cards.values()) card.mode($("noise").checked, running !== null);
  const model = models[0] ?? "MODEL";
  const { places = true } = facts(model) ?? {};
  const flags = ["steps", "guidance"].filter((id) => takes([model], id)).map((id) => `--${id} ${$(id).value}`).join(" ");
  const labels = written(places ? objects : objects.map(({ name }) => ({ name }))); // else the command refuses them
  const how = flags && ` FLAGS="${flags}"`;
  $("command").textContent = `${experiment.command} LABELS=${quoted(labels)} MODEL=${model} COUNT=${count} SEED=${seed}${how}`;
  toAddress();
}

const say = (words) => ($("status").textContent = words);
const complain = (words) => ($("error").textContent = words);
const wait = (seconds, signal) =>
  new Promise((done, failed) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), failed(signal.reason)), { once: true });
  });

const GONE = "The server does not answer: is `make play` still running?";
const lost = (error) => {
  throw error.name === "AbortError" ? error : new Error(GONE);
};

/** Returns why an answer is none. The words are JSON, but those of uvicorn itself or of a proxy can be anything. */
const refusal = async (answer) =>
  (await answer.json().catch(() => null))?.error ?? `The server answers ${answer.status}: try again`;

/** Asks the server and yields its events. A busy server is asked again after the time that it names. */
async function* events(asked, signal) {
  let answer;
  for (let tries = 1; ; tries++) {
    answer = await fetch("/api/draw", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
      signal,
    }).catch(lost);
    if (answer.status !== 503 || tries === TRIES) break;
    const seconds = Number(answer.headers.get("retry-after")) || 1;
    say(`Many are drawing; next try in ${seconds} s`);
    await wait(seconds, signal);
  }
  if (!answer.ok) throw new Error(await refusal(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read().catch(lost);
    if (done) throw new Error("The server closed the connection");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.event === "end") return;
      if (event.event === "error") throw new Error(event.error);
      yield event;
    }
  }
}

/** Runs one request, with the button as its stop. `each(event)` gets the events. */
async function run(asked, each) {
  const stop = new AbortController();
  running = stop;
  complain("");
  $("draw").textContent = "Stop";
  $("draw").classList.add("stops");
  $("draw").formNoValidate = true; // it stops whatever the fields hold by now
  $("results").setAttribute("aria-busy", "true"); // not the page: a reader may be silent about what is busy
  refresh();
  try {
    for await (const event of events(asked, stop.signal)) {
      if (event.event === "queued") say(event.ahead ? `Waiting: ${event.ahead} before you` : "Starting");
      else each(event);
    }
    return true;
  } catch (error) {
    if (stop.signal.aborted) say("Stopped");
    else {
      say("");
      complain(error.message);
    }
    return false;
  } finally {
    running = null;
    $("draw").textContent = "Draw";
    $("draw").classList.remove("stops");
    $("draw").formNoValidate = false;
    $("results").removeAttribute("aria-busy");
    refresh();
  }
}

/** Draws what the page shows now, instead of what is being drawn. */
function drawNow() {
  again = Boolean(running);
  running ? running.abort() : draw();
}

/** Begins the drawing that was asked for while another ran. */
function next() {
  if (again) drawNow();
}

async function draw() {
  const asked = state();
  performance.clearMarks();
  performance.mark("click");
  say("Starting");
  cards.clear();
  for (const name of asked.models) cards.set(name, new Card(facts(name), asked, gif));
  $("results").replaceChildren(...[...cards.values()].map((card) => card.element));
  if (matchMedia("(max-width: 820px)").matches) $("results").scrollIntoView({ block: "nearest" });
  const finished = await run(asked, (event) => {
    const card = cards.get(event.model);
    if (event.event === "step") {
      card.step(event);
      say(`${facts(event.model).title}: step ${event.step} of ${event.of}`);
      if (!performance.getEntriesByName("first step").length) performance.mark("first step");
    } else {
      card.done(event);
      if (!performance.getEntriesByName("picture").length) performance.mark("picture");
    }
  });
  if (finished) say(`Done: ${[...cards.values()].map((card) => card.summary).join("; ")}`);
  for (const card of cards.values()) card.settle();
  next();
}

/** Draws a card's picture again, for its GIF: the same bits, and the page need not encode one itself. */
async function gif(card) {
  say("Making the GIF");
  const made = await run({ ...card.asked, models: [card.model.name], gif: true }, (event) => {
    if (event.gif) save(event.gif, `${card.fileName}.gif`);
  });
  if (made) say("The GIF is downloaded");
  next();
}

function save(url, name) {
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
}

function surprise() {
  keep();
  const names = [...scene.known.keys()];
  const count = 1 + random(Math.min(RANDOM_OBJECTS, names.length));
  const chosen = Array.from({ length: count }, () => names.splice(random(names.length), 1)[0]);
  scene.set(chosen.map((name) => ({ name, place: null })));
  $("seed").value = random(100000);
  refresh();
  if (chosenModels().length) drawNow();
}

function modelChoice(model) {
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", value: model.name, checked: true });
  label.className = "pill";
  label.append(box, model.title);
  label.title = model.places ? "" : "Takes no places: it chooses them";
  return label;
}

function limits() {
  const { steps, guidance, seed } = experiment.limits;
  const diffusion = experiment.models.filter((model) => model.steps);
  const most = Math.min(steps, ...diffusion.map((model) => model.most_steps));
  Object.assign($("steps"), { max: diffusion.length ? most : 1 });
  const usual = experiment.models.find((model) => model.guidance !== null)?.guidance ?? 1;
  const step = Number(usual.toFixed(1)) === usual ? 0.1 : 0.001; // so that the usual one is a step of the slider
  Object.assign($("guidance"), { max: Math.min(Math.max(8, usual), guidance), step });
  $("seed").max = seed;
  $("steps").value = diffusion[0]?.steps ?? 1;
  $("guidance").value = usual;
  $("seed").value = 0;
}

async function start() {
  const answer = await fetch("/api/experiment").catch(lost);
  if (!answer.ok) throw new Error(await refusal(answer));
  experiment = await answer.json();
  const where = HERE.includes(location.hostname) ? "this machine" : location.hostname; // HOST lets others in
  $("experiment").textContent = `${experiment.name}, ${experiment.size}×${experiment.size} pixels, on ${where}`;
  $("models").append(...experiment.models.map((model) => modelChoice(model)));
  limits();
  scene = new Scene(experiment.objects, experiment.limits.objects, (words) => (say(words), refresh()));
  const restore = () => {
    const drawn = fromHash();
    refresh();
    if (drawn && chosenModels().length) drawNow();
  };
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    running ? running.abort() : draw();
  });
  $("controls").addEventListener("input", refresh);
  $("dice").addEventListener("click", () => (($("seed").value = random(100000)), refresh()));
  $("surprise").addEventListener("click", surprise);
  $("clear").addEventListener("click", () => (keep(), scene.set([]), say("Cleared"), refresh()));
  $("link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(link());
      say("Link copied");
    } catch {
      say("The link is in the address bar");
    }
  });
  window.addEventListener("hashchange", restore);
  restore();
  document.body.dataset.ready = "true";
}

start().catch((error) => complain(error.message));
